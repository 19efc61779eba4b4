"""Rules that tell a collapsing online run from a healthy one: pure functions over the rows of its training curve.

A row is what engine.online records of one iteration. Rows made before the policy moved (`policy_steps` 0: critic
warm-up and the first iteration) are the start that relative rules compare with. Reward and losses do not reveal a
collapse on their own, so most rules look at the responses.

Source: METHODS 5.4 (Zheng et al. 2023, "Secrets of RLHF in Large Language Models, Part I", section 5); numbers: ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from configs.recipes import Tripwires

Row = Mapping[str, float]
AT_ONCE = ("nonfinite",)  # no patience with it


@dataclass(frozen=True)
class Alarm:
    """One rule that held: at which row, what was found and what the rule allows."""

    rule: str
    step: int
    found: float
    limit: float
    text: str


def start_of(rows: Sequence[Row]) -> dict[str, float]:
    """Mean of every metric over the rows whose rollouts came from the policy the run started with."""
    first = [row for row in rows if row["policy_steps"] == 0 and "nonfinite" not in row] or list(rows[:1])
    names = set.intersection(*(set(row) for row in first)) if first else set()
    return {name: sum(row[name] for row in first) / len(first) for name in sorted(names)}


def check(rows: Sequence[Row], rules: Tripwires, since: int = 0) -> list[Alarm]:
    """The alarms that the last row completes: rules that held in each of the last `patience` rows.

    since: the step at which the run went back to an anchor; rows up to it are of weights that were given up.
    """
    if not rows:
        return []
    start = start_of(rows)
    last = violations(rows[-1], start, rules)
    recent = [row for row in rows[-rules.patience : -1] if row["step"] > since]
    before = [{a.rule for a in violations(row, start, rules)} for row in recent]
    enough = len(before) == rules.patience - 1
    return [a for a in last if a.rule in AT_ONCE or (enough and all(a.rule in held for held in before))]


def violations(row: Row, start: Row, rules: Tripwires) -> list[Alarm]:
    """Every rule that this one row breaks. A metric that the row lacks breaks nothing (a method without a critic)."""
    if "nonfinite" in row:
        return [lost(int(row["step"]), int(row["nonfinite"]))]
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    found = [
        Alarm("nonfinite", int(row["step"]), row[name], 0.0, f"{name} is {row[name]}; want a finite number")
        for name in bad
    ]
    for name, needs, rule in _RULES:
        if all(n in row and n not in bad for n in needs) and all(n in start for n in needs):
            value, limit, broken, text = rule(row, start, rules)
            if broken:
                found.append(Alarm(name, int(row["step"]), value, limit, text))
    return found


def lost(step: int, count: int, text: str = "") -> Alarm:
    """The alarm of a row that keeps only the finite ones of its metrics. count: how many it lacks, at least 1."""
    return Alarm("nonfinite", step, float(count), 0.0, text or f"{count} metrics are not finite; want finite numbers")


_Verdict = tuple[float, float, bool, str]  # found, limit, broken, text


def _below(name: str, row: Row, limit: float, meaning: str) -> _Verdict:
    return row[name], limit, row[name] < limit, f"{name} {row[name]:.4g} is below {limit:.4g}: {meaning}"


def _above(name: str, row: Row, limit: float, meaning: str) -> _Verdict:
    return row[name], limit, row[name] > limit, f"{name} {row[name]:.4g} is above {limit:.4g}: {meaning}"


def _runaway(row: Row, start: Row, rules: Tripwires) -> _Verdict:
    limit = rules.max_length * start["response_length"]
    value, _, longer, text = _above("response_length", row, limit, "responses grow and do not end")
    return value, limit, longer and row["missing_eos"] > rules.missing_eos, text


def _perplexity(row: Row, start: Row, rules: Tripwires) -> _Verdict:
    """Of the nats a token, not of the perplexity: half of a perplexity of 1.3 cannot be, and of 14 it is no collapse."""
    limit = max(1.0, start["perplexity"]) ** rules.min_nll
    return _below("perplexity", row, limit, "the policy is nearly certain of every token")


def _critic(row: Row, start: Row, rules: Tripwires) -> _Verdict:
    limit = min(rules.min_explained, start["explained_variance"])
    value, _, broken, text = _below("explained_variance", row, limit, "the critic is worse than a constant by far")
    return value, limit, broken and not row.get("warmup", 0.0), text  # in its warm-up it has hardly begun to learn


def _reward(row: Row, start: Row, rules: Tripwires) -> _Verdict:
    limit = start["score_p95"] + rules.reward_sigmas * start["score_std"]
    return _above("score_p95", row, limit, "the upper tail left the range in which the reward model was ever tried")


_RULES: tuple[tuple[str, tuple[str, ...], Callable[[Row, Row, Tripwires], _Verdict]], ...] = (
    ("perplexity", ("perplexity",), _perplexity),
    ("runaway", ("response_length", "missing_eos"), _runaway),
    ("endless", ("missing_eos",), lambda r, s, t: _above(
        "missing_eos", r, s["missing_eos"] + t.endless, "the policy has forgotten how to end")),
    ("long", ("response_length",), lambda r, s, t: _above(
        "response_length", r, 2 * t.max_length * s["response_length"], "length alone is being rewarded")),
    ("kl", ("kl",), lambda r, s, t: _above("kl", r, 2 * t.kl_budget, "twice the budget, far from the reference")),
    ("short", ("response_length",), lambda r, s, t: _below(
        "response_length", r, t.min_length * s["response_length"], "responses shrink to nothing")),
    ("mute", ("mute",), lambda r, s, t: _above("mute", r, s["mute"] + t.mute, "the policy answers with EOS at once")),
    ("repetition", ("distinct_2",), lambda r, s, t: _below(
        "distinct_2", r, t.min_distinct * s["distinct_2"], "responses repeat themselves")),
    ("loops", ("loops",), lambda r, s, t: _above(
        "loops", r, s["loops"] + t.loops, "responses repeat themselves up to the limit")),
    ("entropy", ("entropy",), lambda r, s, t: _below(
        "entropy", r, t.min_entropy * s["entropy"], "nothing is explored any more")),
    ("reward", ("score_p95", "score_std"), _reward),
    ("clip", ("clip_fraction",), lambda r, s, t: _above(
        "clip_fraction", r, t.clip_fraction, "steps are too large for the clipped objective")),
    ("critic", ("explained_variance",), _critic),
)  # fmt: skip
