"""Two campaigns on one page: what their gold judges say of each, and what was different about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import lineage, trust, versions
from report.archive import Archive
from report.charts import Axis, Figure, Point, Series, figure
from report.evidence import BASE, Evidence
from report.page import render
from report.quantities import interval, number, signed
from report.trust import Heat, HeatCell
from report.view import View
from storage import Store

GOLD = (("gold_helpfulness", "Gold helpfulness"), ("gold_safety", "Gold safety"), ("gold", "Gold"))


def build_pair(store: Store, first: View, second: View) -> str:
    """Return the page that compares two campaigns of one store.

    Only what means the same in both is drawn together: gold scores, KL, length. Reward models are each campaign's own.
    """
    both = [Evidence(view, Archive(store)) for view in (first, second)]
    names = _names(first, second)
    context = {
        "names": names,
        "sides": [
            {
                "name": name,
                "view": one.view,
                "headline": versions.headline(one),
                "totals": lineage.totals(one),
                "columns": versions.columns(one),
                "table": versions.table(one),
                "final": one.final,
            }
            for name, one in zip(names, both)
        ],
        "figures": figures(names, both),
        "categories": categories(names, both),
        "differences": merged(differences(first.config, second.config)),
        "shared": shared(*both),
        "problems": [line for one in both for line in one.archive.problems],
    }
    return render("pair.html", context)


def write_pair(store: Store, first: View, second: View, path: Path | str) -> Path:
    """Build the page and write it to a file."""
    path = Path(path)
    path.write_text(build_pair(store, first, second), encoding="utf-8")
    return path


def _names(first: View, second: View) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name}-{first.digest[:6]}", f"{second.name}-{second.digest[:6]}"


def figures(names: Sequence[str], both: Sequence[Evidence]) -> list[Figure]:
    """Each gold score over the versions and over the KL, one line a campaign."""
    found = []
    labels = list(dict.fromkeys(label for one in both for label in one.evaluated))
    axis = Axis("version", [(i, label) for i, label in enumerate(labels)], low=-0.3, high=len(labels) - 0.7)
    for column, title in GOLD:
        series = [_line(name, one, column, labels, i) for i, (name, one) in enumerate(zip(names, both))]
        series = [one for one in series if one.points]
        if series:
            text = "Mean over each campaign's held-out prompts; bars: 95% bootstrap interval over prompts."
            found.append(figure(title, series, axis, Axis("gold score"), caption=text))
    over = [_over_kl(name, one, i) for i, (name, one) in enumerate(zip(names, both))]
    over = [one for one in over if one.points]
    if over:
        text = "Gold score of each version over the root of its KL to its campaign's v0, in nats a response."
        found.append(figure("Gold over KL", over, Axis("square root of KL"), Axis("gold score"), caption=text))
    return found


def _line(name: str, evidence: Evidence, column: str, labels: Sequence[str], i: int) -> Series:
    points = []
    for label, entry in evidence.standing.entries.items():
        if found := entry.get(column):
            tip = f"{name}, {label}: {number(found['mean'])} ({interval(found)})"
            place = labels.index(label) + (0.06 if i else -0.06)
            points.append(Point(place, found["mean"], tip, found["low"], found["high"]))
    return Series(name, points, "ink" if i else "accent", dashed=bool(i))


def _over_kl(name: str, evidence: Evidence, i: int) -> Series:
    points = []
    for label, entry in evidence.standing.entries.items():
        if label != BASE and entry.get("gold") and entry.get("kl"):
            root = max(0.0, entry["kl"]["mean"]) ** 0.5
            tip = f"{name}, {label}: {number(entry['gold']['mean'])} at KL {number(root**2, 1)}"
            points.append(Point(root, entry["gold"]["mean"], tip, tag=label))
    return Series(name, sorted(points, key=lambda p: p.x), "ink" if i else "accent", dashed=bool(i))


def categories(names: Sequence[str], both: Sequence[Evidence]) -> list[Heat]:
    """Gold of each campaign's final version by category, coloured by the second's gain over the first."""
    finals = [one.final for one in both]
    if None in finals:
        return []
    tables = [
        {c: trust.mean_of(v.get("gold")) for c, v in one.standing.entries[str(final)].get("categories", {}).items()}
        for one, final in zip(both, finals)
    ]
    rows = []
    for category in sorted(set(tables[0]) & set(tables[1])):
        a, b = tables[0][category], tables[1][category]
        if a is not None and b is not None:
            gain = HeatCell(signed(b - a), max(-1.0, min(1.0, (b - a) / 0.3)))
            rows.append((category, [HeatCell(number(a)), HeatCell(number(b)), gain]))
    heads = [f"{name} {final}" for name, final in zip(names, finals)]
    return [Heat("gold", "Gold", [*heads, "second minus first"], rows)] if rows else []


def differences(first: Any, second: Any, place: str = "") -> list[tuple[str, str, str]]:
    """Where two configurations differ: (key, first, second), None for what one of them lacks."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [
            line
            for key in sorted({*first, *second})
            for line in differences(first.get(key), second.get(key), f"{place}.{key}" if place else str(key))
        ]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return [line for i, (a, b) in enumerate(zip(first, second)) for line in differences(a, b, f"{place}[{i}]")]
    return [] if first == second else [(place, _short(first), _short(second))]


def merged(lines: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The lines with each setting once: a seed that stages take over from the campaign differs in one place, not in thirty."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for place, first, second in lines:
        places.setdefault((place.rpartition(".")[2], first, second), []).append(place)
    found = []
    for (_, first, second), same in places.items():
        highest = min(same, key=lambda place: (place.count(".") + place.count("["), place))
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        found.append((highest + more, first, second))
    return sorted(found)


def _short(value: Any, most: int = 120) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= most else text[: most - 3] + "..."


def shared(first: Evidence, second: Evidence) -> list[str]:
    """Labels of the stages whose results both campaigns use."""
    refs = {node.ref for node in second.view.nodes}
    return [node.label for node in first.view.nodes if node.ref in refs and node.label in first.done]
