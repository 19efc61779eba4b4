"""Is the model better, or only its score: proxy against gold over KL, win rates, and where a category was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from report.archive import Row
from report.charts import Axis, Figure, Point, Series, figure
from report.evidence import FIRST, Evidence
from report.quantities import NONE, number, percent, signed

MEASURES = (("gold", "Gold"), ("score", "Reward models"))
CATEGORY_COLUMNS = (
    ("gold", "Gold"),
    ("gold_helpfulness", "Gold helpfulness"),
    ("gold_safety", "Gold safety"),
    ("score", "Reward models"),
)


@dataclass(frozen=True)
class HeatCell:
    """`shade` in -1..1 colours the cell: positive is better than the reference."""

    text: str
    shade: float = 0.0
    tip: str = ""


@dataclass(frozen=True)
class Heat:
    """A coloured table; `key` names it among its alternatives."""

    key: str
    name: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell]]]


def proxy_against_gold(evidence: Evidence) -> Figure | None:
    """Both scores as change since v0 in standard deviations of v0's responses, over the root of the KL (METHODS 9.3)."""
    rows = evidence.responses
    if not evidence.standing.one_scale or FIRST not in rows:
        return None
    series = []
    for column, name in MEASURES:
        start = _values(rows[FIRST], column)
        if not start:
            continue
        mean, spread = _moments(start)
        points = []
        for label, found in rows.items():
            values, kl = _values(found, column), _values(found, "kl")
            if label == "base" or not values or not kl or spread == 0:
                continue
            divergence, change = max(0.0, sum(kl) / len(kl)), (sum(values) / len(values) - mean) / spread
            tip = f"{label}: {name.lower()} {signed(change)} sd at KL {number(divergence, 1)} nats"
            points.append(Point(math.sqrt(divergence), change, tip, tag=label if column == "gold" else ""))
        looks = {"gold": "accent", "score": "ink"}
        points.sort(key=lambda point: point.x)
        series.append(Series(name, points, looks[column], dashed=column == "score"))
    if not series:
        return None
    caption = (
        f"Change of the mean since {FIRST}, in standard deviations of {FIRST}'s responses; KL to {FIRST} in nats a response, "
        "sampled at the evaluation temperature. Where the dashed line rises and the solid one does not, the score is gamed."
    )
    return figure(
        "Proxy against gold", series, Axis("square root of KL"), Axis("change, sd", room=0.1), caption=caption
    )


def two_win_rates(evidence: Evidence) -> Figure | None:
    """The paper's figure 11: win rate in safety and in helpfulness against v0, version by version."""
    rows = evidence.responses
    if not evidence.standing.one_scale or FIRST not in rows:
        return None
    series: list[Series] = []
    for prefix, name, look in (("gold_", "By gold", "accent"), ("", "By the reward models", "ink")):
        points = []
        for label, found in rows.items():
            rates = [_rate(found, rows[FIRST], prefix + kind) for kind in ("safety", "helpfulness")]
            if label == "base" or None in rates:
                continue
            across, up = rates
            tip = f"{label}: safer on {percent(across)}, more helpful on {percent(up)} of the prompts"
            points.append(Point(float(across or 0), float(up or 0), tip, tag=label if prefix or not series else ""))
        if points:
            series.append(Series(name, points, look, dashed=not prefix))
    if not series:
        return None
    caption = (
        f"Share of held-out prompts on which the version beats {FIRST}, a tie counting half: {FIRST} is at 0.5, 0.5."
    )
    x, y = Axis("safer than v0", room=0.12), Axis("more helpful than v0", room=0.12)
    return figure("Helpfulness and safety wins (figure 11)", series, x, y, caption=caption)


def matrices(evidence: Evidence) -> list[Heat]:
    """Win rate of every version (row) over every other (column), by each measure."""
    labels = evidence.evaluated
    found = []
    for measure, name in MEASURES:
        rows = []
        for a in labels:
            cells = [_win_cell(evidence, a, b, measure) for b in labels]
            rows.append((a, cells))
        if any(cell.text not in ("", NONE) for _, cells in rows for cell in cells):
            found.append(Heat(measure, name, labels, rows))
    return found


def _win_cell(evidence: Evidence, a: str, b: str, measure: str) -> HeatCell:
    if a == b:
        return HeatCell("")
    pair, mirrored = evidence.pair(a, b, measure), False
    if pair is None:
        pair, mirrored = evidence.pair(b, a, measure), True
    if pair is None:
        return HeatCell(NONE)
    rate = pair["win_rate"]["mean"]
    low, high = pair["win_rate"]["low"], pair["win_rate"]["high"]
    if mirrored:
        rate, low, high = 1 - rate, 1 - high, 1 - low
    tip = f"{a} beats {b} on {percent(rate)} of the prompts ({percent(low)} to {percent(high)})"
    return HeatCell(percent(rate), max(-1.0, min(1.0, (rate - 0.5) * 2.5)), tip)


def categories(evidence: Evidence) -> list[Heat]:
    """Mean of each category, coloured by the change since v0."""
    entries = evidence.standing.entries
    labels = evidence.evaluated
    if FIRST not in entries:
        return []
    found = []
    for column, name in CATEGORY_COLUMNS:
        if column == "score" and not evidence.standing.one_scale:
            continue
        start = {c: mean_of(v.get(column)) for c, v in entries[FIRST].get("categories", {}).items()}
        known = [value for value in start.values() if value is not None]
        if not known:
            continue
        means = {
            (c, v): mean_of(entries[v].get("categories", {}).get(c, {}).get(column)) for c in start for v in labels
        }
        spans = [abs(m - s) for (c, _), m in means.items() if m is not None and (s := start[c]) is not None]
        scale = max([*spans, 1e-9]) if column == "score" else max([*spans, 0.2])
        rows = []
        for category in sorted(start):
            cells = [_change_cell(means[category, v], start[category], v, category, scale) for v in labels]
            rows.append((category, cells))
        found.append(Heat(column, name, labels, rows))
    return found


def _change_cell(value: float | None, start: float | None, version: str, category: str, scale: float) -> HeatCell:
    if value is None:
        return HeatCell(NONE)
    if start is None or version == FIRST:
        return HeatCell(number(value))
    tip = f"{category}, {version}: {number(value)}, {signed(value - start)} since {FIRST}"
    return HeatCell(number(value), max(-1.0, min(1.0, (value - start) / scale)), tip)


def mean_of(found: Any) -> float | None:
    """A mean as `evaluate` (with its interval) or as `compare` (plain) writes it."""
    value = found.get("mean") if isinstance(found, dict) else found
    return float(value) if isinstance(value, int | float) else None


def _values(rows: Sequence[Row], column: str) -> list[float]:
    return [row[column] for row in rows if row.get(column) is not None]


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


def _rate(rows: Sequence[Row], others: Sequence[Row], column: str) -> float | None:
    """Win rate over paired responses, a tie as half; None if one side has no such score."""
    if not rows or any(row.get(column) is None for side in (rows, others) for row in side):
        return None
    gaps = [float(a[column] - b[column]) for a, b in zip(rows, others, strict=True)]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)
