"""Whether a version may be built upon: stated rules over what evaluate has found out about it and about the best before it.

Source: METHODS 4.3, 5.4, 9.3, 9.4 for what to look at; the rules and their levels are ours.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.gates import Gate, Limit, Verdict
from engine.errors import StageError
from engine.job import Job

Summary = Mapping[str, Any]
Reason = dict[str, Any]
TRUSTED = ("gold", "judge", "score")  # the most trusted first
NAMES = {"gold": "gold", "judge": "the judge model", "score": "the reward models"}


def run(job: Job) -> dict[str, Any]:
    """Write verdict.json and return the same: verdict, accepted, by which measure, and a reason for each rule that held."""
    recipe: Verdict = job.recipe
    version, best = (_read(job.folder(role) / "summary.json") for role in ("evaluation", "best"))
    found = judge(recipe.rules, version, best, recipe.best)
    (job.out / "verdict.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for reason in found["reasons"]:
        job.log(f"{recipe.version}: {reason['action']}: {reason['text']}")
    return found


def judge(rules: Gate, version: Summary, best: Summary, label: str) -> dict[str, Any]:
    """The verdict on a version: `rejected` if one rule rejects, `warned` if one warns, else `accepted`.

    `leads`: it is accepted and, by the most trusted measure, on average no worse than the best: the best from now on.

    version, best: the summaries of their evaluations; label: what the best is called among the earlier ones.

    Raises:
        StageError: the version was not compared with the best one.
    """
    if label not in version["against"]:
        known = ", ".join(version["against"]) or "none"
        raise StageError(f"version {label} to compare with is not among the earlier ones: {known}")
    compared = version["against"][label]
    by = next((measure for measure in TRUSTED if measure in compared), None)
    reasons = [*_scores(rules, compared, by, label), *_looks(rules, version, best, label)]
    actions = {reason["action"] for reason in reasons}
    word = "rejected" if "reject" in actions else "warned" if "warn" in actions else "accepted"
    behind = by is not None and compared[by]["difference"]["mean"] < 0
    return {
        "verdict": word,
        "accepted": word != "rejected",
        "leads": word != "rejected" and not behind,
        "by": by or "nothing",
        "best": label,
        "reasons": reasons,
        "on_reject": rules.on_reject,
    }


def _scores(rules: Gate, compared: Mapping[str, Any], by: str | None, label: str) -> Iterator[Reason]:
    """What the paired comparisons with the best version say."""
    if by is None:
        return
    gap, rate = compared[by]["difference"], compared[by]["win_rate"]
    if rules.worse != "off" and gap["high"] < 0:
        yield _reason("worse", rules.worse, gap["high"], 0.0, f"worse than {label} by {NAMES[by]}: {_interval(gap)}")
    if rules.judge != "off" and by == "gold" and "judge" in compared and compared["judge"]["difference"]["high"] < 0:
        other = compared["judge"]["difference"]
        text = f"worse than {label} by {NAMES['judge']}: {_interval(other)}"
        yield _reason("judge", rules.judge, other["high"], 0.0, text)
    proxy = compared.get("score", {}).get("difference")
    if rules.parted != "off" and by != "score" and proxy and proxy["low"] > 0 and gap["mean"] <= 0:
        text = (
            f"proxy and {NAMES[by]} part: the reward models say {_interval(proxy)} over {label}, "
            f"{NAMES[by]} {_interval(gap)}"
        )
        yield _reason("parted", rules.parted, gap["mean"], 0.0, text)
    if rules.win_rate and rate["high"] < rules.win_rate.at:
        text = (
            f"wins over {label} by {NAMES[by]} on {_interval(rate, sign='')} of the prompts, want {rules.win_rate.at:g}"
        )
        yield _reason("win_rate", rules.win_rate.action, rate["high"], rules.win_rate.at, text)


def _looks(rules: Gate, version: Summary, best: Summary, label: str) -> Iterator[Reason]:
    """What the responses themselves say."""
    kl = (version.get("kl") or {}).get("mean")
    yield from _beyond("kl", rules.kl, kl, 1, "KL to v0 is {found:.3g} nats a response, at most {limit:g}")
    ratio = version["length"] / best["length"] if best["length"] else None
    text = f"responses have {version['length']:.3g} tokens, those of {label} {best['length']:.3g}: "
    yield from _beyond("shorter", rules.shorter, ratio, -1, text + "{found:.3g} times as many, at least {limit:g}")
    yield from _beyond("longer", rules.longer, ratio, 1, text + "{found:.3g} times as many, at most {limit:g}")
    cut = version["missing_eos"]
    yield from _beyond(
        "missing_eos", rules.missing_eos, cut, 1, "{found:.3g} of the responses do not end, at most {limit:g}"
    )
    refused, before = version.get("refusals"), best.get("refusals")
    more = None if refused is None or before is None else refused - before
    text = f"refuses {refused} of the harmless requests, {label} {before}: {{found:.3g}} more, at most {{limit:g}}"
    yield from _beyond("refusals", rules.refusals, more, 1, text)


def _beyond(name: str, rule: Limit | None, found: float | None, way: int, text: str) -> Iterator[Reason]:
    """The rule's reason if `found` is beyond its level; way: 1 above it, -1 below it."""
    if rule is not None and found is not None and way * (found - rule.at) > 0:
        yield _reason(name, rule.action, found, rule.at, text.format(found=found, limit=rule.at))


def _reason(rule: str, action: str, found: float, limit: float, text: str) -> Reason:
    return {"rule": rule, "action": action, "found": found, "limit": limit, "text": text}


def _interval(found: Mapping[str, float], sign: str = "+") -> str:
    return f"{found['mean']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def _read(path: Path) -> Summary:
    summary: Summary = json.loads(path.read_text())
    return summary
