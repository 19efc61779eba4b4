"""Versions under every round's reward models and the judges: the heat map, proxy against truth over the KL, best of n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from report.charts import Axis, Figure, Point, Series, figure, look
from report.evidence import Evidence
from report.quantities import NONE, interval, number, percent, signed
from report.trust import Heat, HeatCell

TRUTH = {"gold": "gold", "judge": "the judge models"}


def table(evidence: Evidence) -> Mapping[str, Any] | None:
    """What the matrix stage wrote, if it has ended."""
    nodes = evidence.view.doing("matrix")
    found: Mapping[str, Any] | None = evidence.archive.json(nodes[0].ref, "matrix.json") if nodes else None
    return found


def heats(found: Mapping[str, Any]) -> list[Heat]:
    """Versions (rows) under judges (columns): wins over v0, and change since v0 in its standard deviations."""
    judges = [judge["name"] for judge in found["judges"]]
    steered = {gap["version"]: gap["proxy_of"] for gap in found["gaps"]}
    wins, changes = [], []
    for label in found["versions"]:
        row = [found["cells"][label][name] for name in judges]
        own = [name == steered.get(label) for name in judges]
        wins.append((label, [_wins(label, name, cell, mine) for name, cell, mine in zip(judges, row, own)]))
        changes.append((label, [_change(label, name, cell, mine) for name, cell, mine in zip(judges, row, own)]))
    return [Heat("wins", "Wins over v0", judges, wins), Heat("change", "Change since v0, sd", judges, changes)]


def _wins(label: str, judge: str, cell: Mapping[str, Any], own: bool) -> HeatCell:
    rate = cell["wins"]["mean"]
    tip = f"{label} beats v0 on {percent(rate)} of the prompts by {judge} ({interval(cell['wins'], percent)})"
    return HeatCell(_marked(percent(rate), own), _clipped((rate - 0.5) * 2.5), tip + _steered(own))


def _change(label: str, judge: str, cell: Mapping[str, Any], own: bool) -> HeatCell:
    change = cell["change"]["mean"]
    tip = f"{label} by {judge}: {signed(change)} sd since v0 ({interval(cell['change'], signed)}), mean {number(cell['mean'])}"
    return HeatCell(_marked(signed(change), own), _clipped(change), tip + _steered(own))


def _marked(text: str, own: bool) -> str:
    return f"{text}*" if own else text


def _steered(own: bool) -> str:
    return "; these reward models steered it" if own else ""


def _clipped(value: float) -> float:
    return max(-1.0, min(1.0, value))


def proxy_over_kl(found: Mapping[str, Any]) -> Figure | None:
    """Change of each version by the reward models that steered it and by the truth, over the root of the KL."""
    names = {"proxy": "The reward models that steered it", "truth": TRUTH.get(found["truth"] or "", "").capitalize()}
    series = []
    for column, shade in (("truth", "accent"), ("proxy", "ink")):
        points = [
            Point(
                math.sqrt(max(0.0, gap["kl"])), gap[column]["mean"],
                f"{gap['version']}: {signed(gap[column]['mean'])} sd ({interval(gap[column], signed)}), "
                f"KL {number(gap['kl'], 1)}",
                gap[column]["low"], gap[column]["high"], tag=gap["version"] if column == "truth" else "",
            )
            for gap in found["gaps"]
            if gap[column]
        ]  # fmt: skip
        if points:
            series.append(Series(names[column], points, shade, dashed=column == "proxy"))
    if len(series) < 2:
        return None
    caption = f"{parting_text(found)} Change since v0 in v0's standard deviations; KL in nats a response."
    return figure("Proxy and truth over the KL", series, Axis("square root of KL to v0"), Axis("change, sd", room=0.1),
                  caption=caption)  # fmt: skip


def parting_text(found: Mapping[str, Any]) -> str:
    """One sentence: where proxy and truth part."""
    part = found["parting"]
    if found["truth"] is None:
        return "Nobody but the reward models has judged: whether they are right cannot be told."
    if part is None:
        return f"By {TRUTH[found['truth']]}, proxy and truth have not parted."
    if not isinstance(part["proxy"], Mapping):
        return "An older matrix: it did not tell a parting from chance. What the gate decided does."
    proxy, truth = (f"{signed(part[side]['mean'])} sd ({interval(part[side], signed)})" for side in ("proxy", "truth"))
    return (
        f"Proxy and truth part between {part['peak']} (KL {number(part['peak_kl'], 1)}) and {part['version']} "
        f"(KL {number(part['kl'], 1)}): the reward models say {proxy}, {TRUTH[found['truth']]} {truth}."
    )


def best_of_n(found: Mapping[str, Any]) -> list[Figure]:
    """What choosing the proxy's best of n gains by the proxy and by gold, over the root of the KL of best of n."""
    figures = []
    for column, title in (("truth", "Best of n by gold"), ("proxy", "Best of n by the proxy itself")):
        curves = found["best_of_n"]
        series = [
            Series(curve["round"], _points(curve, column), look(i, len(curves)), dashed=column == "proxy")
            for i, curve in enumerate(curves)
        ]
        if not series:
            continue
        text = "; ".join(_fit(curve, column) for curve in curves)
        caption = (
            "Gain over one sample, in standard deviations of the round's samples; unbiased over all subsets. "
            f"KL of best of n: log n - (n - 1)/n. Fit d (a - b d): {text}."
        )
        figures.append(figure(title, series, Axis("square root of KL"), Axis("gain, sd", room=0.1), caption=caption))
    return figures


def _points(curve: Mapping[str, Any], column: str) -> Sequence[Point]:
    return [
        Point(
            math.sqrt(point["kl"]), point[column]["mean"],
            f"{curve['round']}, best of {point['n']}: {signed(point[column]['mean'])} sd ({interval(point[column], signed)})",
            point[column]["low"], point[column]["high"],
        )
        for point in curve["points"]
    ]  # fmt: skip


def _fit(curve: Mapping[str, Any], column: str) -> str:
    fit = curve["fit"][column]
    if not fit:
        return f"{curve['round']} {NONE}"
    peak = f", peak at {number(fit['peak_kl'], 1)} nats" if "peak_kl" in fit else ""
    return f"{curve['round']} a {number(fit['alpha'])}, b {number(fit['beta'])}{peak}"
