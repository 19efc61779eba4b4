"""A bake-off's page: who is best, who cannot be told apart, and what each competitor took."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report.archive import Archive
from report.charts import Axis, Figure, Point, Series, Size, figure
from report.page import render
from report.quantities import NONE, duration, interval, number, percent, signed, size
from report.trust import Heat, HeatCell
from report.versions import Cell
from report.view import Node, View
from storage import Store

RANKING = "ranking"
WIDE = Size(560, 280)
COLUMNS = ("Competitor", "Gold", "Against the start", "p, corrected", "Reward models", "KL, nats", "Length", "No EOS",
           "Distinct-1", "Distinct-2", "Responses", "Steps", "Time", "Peak memory")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a competitor took beyond what all share, the mean over the seeds; the pool of samples counts for all who use it."""

    seconds: float
    memory: float  # bytes, the largest of its stages
    responses: float
    steps: float


def costs(view: View, archive: Archive, names: Sequence[str]) -> dict[str, Cost]:
    """Of every competitor whose stages are all done."""
    labels = {node.label: node for node in view.nodes}
    found: dict[str, Cost] = {}
    for name in names:
        seeds = []
        for seed in view.config["bake_off"]["seeds"]:
            node, start = labels.get(f"s{seed}-{name}"), labels.get(f"s{seed}-v0")
            if node is None or start is None:
                continue
            shared = _closure(
                [n for n in (start, *view.doing("reward"), *view.doing("annotate")) if _of(n, seed)], labels
            )
            own = [n for label, n in _closure([node], labels).items() if label not in shared]
            manifests = [archive.manifest(n.ref) for n in own]
            if all(manifests):
                seeds.append(_cost([m.record for m in manifests if m]))
        if seeds:
            found[name] = Cost(*(sum(column) / len(seeds) for column in zip(*seeds)))
    return found


def _cost(records: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float]:
    summaries = [record.get("summary") or {} for record in records]
    sampled = sum(s.get("responses", 0) for s in summaries if "eos_rate" in s)
    rolled = sum(s.get("sampled", 0) for s in summaries)
    steps = sum(s.get("policy_steps", s.get("steps", 0)) for s in summaries)
    peak = max((record.get("peak_bytes") or 0 for record in records), default=0)
    return sum(record.get("seconds", 0.0) for record in records), peak, sampled + rolled, steps


def _of(node: Node, seed: int) -> bool:
    return node.label.startswith(f"s{seed}-")


def _closure(nodes: Sequence[Node], labels: Mapping[str, Node]) -> dict[str, Node]:
    """The nodes and all that they were made from."""
    found: dict[str, Node] = {}
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.label not in found:
            found[node.label] = node
            todo += [labels[label] for label in node.inputs if label in labels]
    return found


def table(ranking: Mapping[str, Any], took: Mapping[str, Cost]) -> list[tuple[str, list[Cell]]]:
    """One row a competitor, best first; cells under COLUMNS."""
    rows = []
    for place, entry in enumerate(ranking["entries"], start=1):
        name, against, cost = entry["name"], entry["against_start"], took.get(entry["name"])
        mood = "" if not against or not against["significant"] else "good" if against["difference"] > 0 else "bad"
        rows.append((
            f"{place}. {name}",
            [
                _mean(entry.get("gold")),
                Cell(_plus(against["difference"]), interval(against, _plus), mood) if against else Cell("the start"),
                Cell(_fine(against["corrected"])) if against else Cell(NONE),
                _mean(entry.get("score")),
                Cell(number(entry["kl"]["mean"], 1)) if entry.get("kl") else Cell(NONE),
                Cell(number(entry["length"], 1)),
                Cell(percent(entry["missing_eos"], 1)),
                Cell(_fine(entry["distinct_1"])),
                Cell(_fine(entry["distinct_2"])),
                Cell(f"{cost.responses:,.0f}" if cost else NONE),
                Cell(f"{cost.steps:,.0f}" if cost else NONE),
                Cell(duration(cost.seconds) if cost else NONE),
                Cell(size(cost.memory) if cost else NONE),
            ],
        ))  # fmt: skip
    return rows


def _mean(found: Mapping[str, Any] | None) -> Cell:
    return Cell(_fine(found["mean"]), interval(found, _fine)) if found else Cell(NONE)


def _fine(value: Any) -> str:
    return number(value, 3)


def _plus(value: Any) -> str:
    return signed(value, 3)


def sentence(ranking: Mapping[str, Any]) -> str:
    """What is known, in words: who is better than the start, who is best, whether the planted loser came last."""
    entries = {entry["name"]: entry for entry in ranking["entries"]}
    against = {name: entry["against_start"] for name, entry in entries.items() if entry["against_start"]}
    better = [name for name, one in against.items() if one["significant"] and one["difference"] > 0]
    worse = [name for name, one in against.items() if one["significant"] and one["difference"] < 0]
    best = ranking["entries"][0]
    beaten = set(best["better_than"])
    level = [name for name in entries if name not in beaten and name != best["name"]]
    parts = [
        f"{len(better)} of {len(against)} are significantly better than {ranking['start']}, {len(worse)} worse, "
        f"{len(against) - len(better) - len(worse)} cannot be told from it.",
        f"First is {best['name']}; "
        + (f"not told apart from it: {', '.join(level)}." if level else "it is significantly better than all others."),
    ]
    if ranking["planted"]:
        parts.append(
            f"The planted learner {ranking['planted']} came {'last, as it must' if ranking['planted_is_last'] else 'NOT last'}."
        )
    return " ".join(parts)


def matrix(ranking: Mapping[str, Any]) -> list[Heat]:
    """Differences of every two, columns by rank; shaded where significant after correction over all pairs."""
    names = [entry["name"] for entry in ranking["entries"]]
    heats = []
    for measure, title in (("gold", "Gold"), ("score", "Reward models")):
        pairs = {(p["a"], p["b"]): p for p in ranking["pairs"].get(measure, ())}
        if not pairs:
            continue
        most = max(abs(p["difference"]) for p in pairs.values()) or 1.0
        rows = [(f"{i}. {a}", [_cell(a, b, pairs, most) for b in names]) for i, a in enumerate(names, start=1)]
        heats.append(Heat(measure, title, [str(i) for i in range(1, len(names) + 1)], rows))
    return heats


def _cell(a: str, b: str, pairs: Mapping[tuple[str, str], Mapping[str, Any]], most: float) -> HeatCell:
    if a == b:
        return HeatCell("")
    pair, sign = (pairs[a, b], 1) if (a, b) in pairs else (pairs[b, a], -1)
    gap = sign * pair["difference"]
    bounds = sorted((sign * pair["low"], sign * pair["high"]))
    words = f"{_plus(gap)} ({_plus(bounds[0])} to {_plus(bounds[1])}), p {_fine(pair['corrected'])}"
    return HeatCell(signed(gap, 2), gap / most if pair["significant"] else 0.0, f"{a} minus {b}: {words}")


def figures(ranking: Mapping[str, Any], took: Mapping[str, Cost]) -> list[Figure]:
    """Gold of all competitors in order; gold over the KL; gold over the time."""
    entries = ranking["entries"]
    by, title = ranking["by"], ranking["by"].capitalize()
    names = [(i, entry["name"]) for i, entry in enumerate(entries, start=1)]
    tip = lambda e: f"{e['name']}: {_fine(e[by]['mean'])} ({interval(e[by], _fine)})"
    points = [Point(i, e[by]["mean"], tip(e), e[by]["low"], e[by]["high"]) for (i, _), e in zip(names, entries)]
    ticks = [(i, str(i)) for i, _ in names if i == 1 or i % 5 == 0]
    seeds = f"{len(ranking['seeds'])} seed(s) of {ranking['prompts']} held-out prompts"
    note = f"Mean over {seeds}; bars: 95% bootstrap interval. Where two overlap, their paired difference may be significant."
    order, one = Series(by, points, line=False), Axis(by)
    found = [figure(f"{title} by rank", [order], Axis("rank", ticks), one, caption=note, size=WIDE)]
    over = [
        Point(max(0.0, e["kl"]["mean"]) ** 0.5, e[by]["mean"], f"{i}. {tip(e)}", tag=str(i))
        for i, e in enumerate(entries, start=1)
        if e.get("kl")
    ]
    if over:
        across = Axis("square root of the KL to the start, nats a response")
        note = "How far each moved from the start, and what for. Numbers are ranks."
        found.append(figure(f"{title} over KL", [Series(by, over, line=False)], across, one, caption=note, size=WIDE))
    return found


def markdown(ranking: Mapping[str, Any], took: Mapping[str, Cost]) -> str:
    """The table as Markdown, with the sentence above it."""
    lines = [sentence(ranking), "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for label, cells in table(ranking, took):
        texts = [f"{cell.text} ({cell.small})" if cell.small else cell.text for cell in cells]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def write_ranking(store: Store, view: View, path: Path) -> None:
    """Write the page, and the table as Markdown beside it (.md).

    Raises:
        ValueError: the ranking has not been made yet, or it is damaged.
    """
    archive = Archive(store)
    node = view.node(RANKING)
    ranking = archive.json(node.ref, "ranking.json") if node else None
    if ranking is None:
        raise ValueError(f"{view.name} has no ranking yet: run it to its end first{_why(archive.problems)}")
    took = costs(view, archive, [entry["name"] for entry in ranking["entries"]])
    done = sum(archive.manifest(one.ref) is not None for one in view.nodes)
    context = {
        "view": view,
        "ranking": ranking,
        "sentence": sentence(ranking),
        "columns": COLUMNS,
        "table": table(ranking, took),
        "figures": figures(ranking, took),
        "matrix": matrix(ranking),
        "families": families(view),
        "budget": budget(view),
        "done": done,
        "problems": archive.problems,
    }
    path.write_text(render("ranking.html", context), encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(ranking, took), encoding="utf-8")


def _why(problems: Sequence[str]) -> str:
    return f" ({problems[0]})" if problems else ""


def families(view: View) -> list[tuple[str, str]]:
    """What the methods of a family share, in words."""
    found = []
    for family, recipe in view.config["bake_off"]["families"].items():
        if recipe:
            rate = recipe["optimizer"]["learning_rate"]
            rest = f"{recipe['batch_size']} rows a step, {recipe['epochs']:g} epochs"
            found.append((re.sub("_", " ", family), f"learning rate {rate:g}, {rest}"))
    return found


def budget(view: View) -> str:
    """The budget of sampled responses in words."""
    sample = view.config["sample"]
    each = f"{sample['prompts']} prompts x {sample['k']} for offline methods"
    return f"{sample['prompts'] * sample['k']:,} sampled responses ({each})"
