"""The training curve of every stage that kept one, with the tripwires of online runs drawn in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from report.archive import Row
from report.charts import SMALL, Axis, Point, Series, plot, thin
from report.evidence import Evidence
from report.quantities import exact

SHOWN = ("pretrain", "train", "reward", "online")  # the others' curves are counts of shards
FIRST = ("loss", "accuracy", "score", "kl", "response_length", "missing_eos", "entropy")
COUNTERS = frozenset(("step", "epoch", "policy_steps", "iteration"))
UNITS = {
    "loss": "nats",
    "kl": "nats a response",
    "kl_k3": "nats a response",
    "entropy": "nats a token",
    "response_length": "tokens",
    "rate": "learning rate",
    "gradient_norm": "unclipped",
    "tokens": "a step",
    "accuracy": "share",
    "missing_eos": "share",
    "clip_fraction": "share",
    "score": "raw score",
}


@dataclass(frozen=True)
class Curve:
    """One metric of one stage."""

    name: str
    svg: Markup
    last: str
    unit: str
    beyond: str = ""  # the limits that are too far away to be drawn


@dataclass(frozen=True)
class Training:
    """A stage's curves, what alarms its tripwires gave, and how many steps it has."""

    label: str
    stage: str
    steps: int
    curves: Sequence[Curve]
    alarms: Sequence[str]


def trainings(evidence: Evidence) -> list[Training]:
    """One entry a finished stage of SHOWN that has a curve."""
    found = []
    for node in evidence.view.nodes:
        manifest = evidence.archive.manifest(node.ref)
        if node.stage not in SHOWN or manifest is None:
            continue
        rows = evidence.archive.lines(node.ref, "metrics.jsonl")
        if not rows:
            continue
        recipe = manifest.record.get("identity", {}).get("recipe", {})
        rules = recipe.get("tripwires", {}) if node.stage == "online" else {}
        curves = [curve(node.label, name, rows, rules) for name in _names(rows)]
        summary = evidence.archive.summary(node.ref)
        alarms = [_alarm(one) for one in summary.get("alarms", [])] + [_rung(one) for one in summary.get("ladder", [])]
        found.append(Training(node.label, node.stage, int(rows[-1]["step"]), curves, alarms))
    return found


def curve(label: str, name: str, rows: Sequence[Row], rules: Mapping[str, Any]) -> Curve:
    """One metric over the steps, with the limits that watch it."""
    pairs = [(float(row["step"]), float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
    finite = [pair for pair in pairs if math.isfinite(pair[1])]
    series = Series(name, [Point(*pair) for pair in thin(finite)], marks=len(finite) == 1)
    watching = tripwires(name, rows, rules) if rules else []
    limits = [limit for limit in watching if _near(limit[0], finite)]
    beyond = "; ".join(f"{text} at {exact(level)}" for level, text in watching if not _near(level, finite))
    svg = plot([series], Axis("step", room=0.0), Axis(""), limits=limits, title=f"{label}, {name}", size=SMALL)
    return Curve(name, svg, exact(pairs[-1][1]) if pairs else "", UNITS.get(name, ""), beyond)


# metric, the rule's setting, its level from (setting, mean at the start, spread of the scores at the start), its name
_TRIPWIRES: tuple[tuple[str, str, Callable[[float, float, float], float], str], ...] = (
    ("perplexity", "min_nll", lambda rule, start, spread: max(1.0, start) ** rule, "perplexity"),
    ("response_length", "max_length", lambda rule, start, spread: rule * start, "runaway, with missing EOS"),
    ("response_length", "max_length", lambda rule, start, spread: 2 * rule * start, "long"),
    ("response_length", "min_length", lambda rule, start, spread: rule * start, "short"),
    ("missing_eos", "missing_eos", lambda rule, start, spread: rule, "runaway, with length"),
    ("missing_eos", "endless", lambda rule, start, spread: start + rule, "endless"),
    ("kl", "kl_budget", lambda rule, start, spread: 2 * rule, "kl"),
    ("mute", "mute", lambda rule, start, spread: start + rule, "mute"),
    ("distinct_2", "min_distinct", lambda rule, start, spread: rule * start, "repetition"),
    ("loops", "loops", lambda rule, start, spread: start + rule, "loops"),
    ("entropy", "min_entropy", lambda rule, start, spread: rule * start, "entropy"),
    ("score_p95", "reward_sigmas", lambda rule, start, spread: start + rule * spread, "reward"),
    ("clip_fraction", "clip_fraction", lambda rule, start, spread: rule, "clip"),
    ("explained_variance", "min_explained", lambda rule, start, spread: min(rule, start), "critic"),
)


def tripwires(name: str, rows: Sequence[Row], rules: Mapping[str, Any]) -> list[tuple[float, str]]:
    """The levels at which engine.tripwires holds a metric to be wrong: (level, what to call it).

    A test holds this table equal to the engine's rules, which a report may not import. A rule that the run did not have
    is not drawn.
    """
    first = [row for row in rows if row.get("policy_steps") == 0] or list(rows[:1])
    start, spread = (_mean([row[column] for row in first if column in row]) for column in (name, "score_std"))
    found = [
        (level(rules[setting], start, spread), text)
        for metric, setting, level, text in _TRIPWIRES
        if metric == name and setting in rules
    ]
    return [(level, f"tripwire: {text}") for level, text in found if math.isfinite(level)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _near(level: float, pairs: Sequence[tuple[float, float]]) -> bool:
    """A limit far outside the curve would flatten it: it is left out when it is more than 3 ranges away."""
    values = [value for _, value in pairs]
    if not values:
        return False
    low, high = min(values), max(values)
    room = 3 * (high - low) or abs(high) or 1.0
    return low - room <= level <= high + room


def _names(rows: Sequence[Row]) -> list[str]:
    every = {name for row in rows for name, value in row.items() if isinstance(value, int | float)} - COUNTERS
    return sorted(every, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def _rung(taken: Mapping[str, Any]) -> str:
    way = "the run ended" if taken["rung"] == "stop" else f"back to iteration {taken['back_to']}"
    return f"step {taken['step']}: ladder: {taken['rung'].replace('_', ' ')}, {way}"


def _alarm(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"step {found.get('step')}: {found.get('rule')}: {found.get('text', '')}"
    return str(found)
