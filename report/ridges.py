"""Histograms of several groups, one above another on a shared axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from report.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Size, scale, tick_text, ticks
from report.quantities import number

WIDTH = Size().width


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    """Share of the values in each of `bins` equal bins from `low` to `high`; those outside fall into the last ones."""
    counts = [0.0] * bins
    for value in values:
        place = int((value - low) / (high - low) * bins)
        counts[min(bins - 1, max(0, place))] += 1
    return [count / max(1, len(values)) for count in counts]


def ridges(
    title: str, groups: Sequence[tuple[str, Sequence[float]]], x: Axis, looks: Sequence[str], bins: int = 36
) -> Markup:
    """One histogram above another on a shared axis, the oldest on top; a tick marks each mean."""
    right = WIDTH - RIGHT
    every = sorted(value for _, values in groups for value in values)
    if not every:
        return Markup('<p class="absent">No values to draw.</p>')
    tail = len(every) // 200  # half a per cent at each end goes into the outer bins: outliers must not flatten the rest
    span = Axis(x.label, low=every[tail], high=max(every[-1 - tail], every[tail] + 1e-9))
    across = scale(every, span, LEFT, right)
    lane, out = 34, []
    height = TOP + lane * len(groups) + BOTTOM
    shares = [histogram(values, across.low, across.high, bins) for _, values in groups]
    most = max(max(share) for share in shares) or 1.0
    width = (right - LEFT) / bins
    for i, ((name, values), share, look) in enumerate(zip(groups, shares, looks)):
        floor = TOP + lane * (i + 1)
        steps = "".join(f"V{floor - 0.92 * lane * s / most:.1f}h{width:.2f}" for s in share)
        mean = sum(values) / len(values) if values else math.nan
        tip = f"{name}: mean {number(mean)} over {len(values)} responses"
        out.append(Markup('<text class="y" x="{}" y="{}">{}</text>').format(LEFT - 6, floor - 4, name))
        out.append(
            Markup('<g class="{}"><path class="hill" d="M{} {}{}V{}Z"/>').format(look, LEFT, floor, steps, floor)
        )
        if math.isfinite(mean):
            at = min(right, max(LEFT, across(mean)))
            out.append(Markup('<path class="mean" d="M{:.1f} {}v-{}"/>').format(at, floor, lane - 6))
            out.append(Markup('<circle class="pt" cx="{:.1f}" cy="{}" r="3" data-t="{}"/>').format(at, floor, tip))
        out.append(Markup("</g>"))
    places = ticks(across.low, across.high, 5)
    for place in places:
        text = tick_text(place, places)
        out.append(
            Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(across(place), height - BOTTOM + 15, text)
        )
    out.append(
        Markup('<text class="label" x="{:.1f}" y="{}">{}</text>').format((LEFT + right) / 2, height - 6, x.label)
    )
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}">{}</svg>').format(
        WIDTH, height, f"{title}. Arrow keys read the means.", Markup("").join(out)
    )
