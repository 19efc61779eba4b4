"""What was made from what: the graph of stages, and what each took."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from report.evidence import Evidence
from report.quantities import duration, size
from report.view import Node

BOX, ROW, GAP = 140, 40, 46
ARC = 26  # how far the arc of an edge inside a column stands out
MARGIN = 12
ORDER = ("ingest", "leakage", "pretrain", "adopt", "annotate", "reward", "certify", "probe", "sample", "score", "select",
         "train", "online", "evaluate", "gate", "compare", "matrix")  # fmt: skip


@dataclass(frozen=True)
class Took:
    """One stage in the table: None where it has not ended."""

    label: str
    stage: str
    state: str
    wall: str
    cpu: str
    memory: str
    bytes: str
    key: str


def took(evidence: Evidence) -> list[Took]:
    """What every stage took, in order."""
    out = []
    for node in evidence.view.nodes:
        manifest = evidence.archive.manifest(node.ref)
        record = manifest.record if manifest else {}
        out.append(
            Took(
                node.label,
                node.stage,
                "done" if manifest else "not yet",
                duration(record.get("seconds")) if manifest else "",
                duration(record.get("cpu_seconds")) if manifest else "",
                size(record.get("peak_bytes")) if manifest else "",
                size(manifest.bytes) if manifest else "",
                node.ref.key,
            )
        )
    return out


def totals(evidence: Evidence) -> dict[str, Any]:
    """Sums over the stages that have ended."""
    made = [m for node in evidence.view.nodes if (m := evidence.archive.manifest(node.ref)) is not None]
    return {
        "stages": len(evidence.view.nodes),
        "done": len(made),
        "progress": progress(evidence),
        "finished": len(made) == len(evidence.view.nodes)
        if evidence.view.planned
        else evidence.view.compare is not None,
        "seconds": duration(sum(float(m.record.get("seconds", 0.0)) for m in made)),
        "bytes": size(sum(m.bytes for m in made)),
        "began": min((float(m.record["began"]) for m in made if "began" in m.record), default=None),
    }


def progress(evidence: Evidence) -> str:
    """How many stages are done, and of how many where that is known."""
    of = f" of {len(evidence.view.nodes)}" if evidence.view.planned else ""
    return f"{len(evidence.done)}{of} stages done"


def details(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """label -> what the page shows when a node is chosen: inputs, recipe, summary, costs. Plain data."""
    out = {}
    for node in evidence.view.nodes:
        manifest = evidence.archive.manifest(node.ref)
        record = manifest.record if manifest else {}
        identity = record.get("identity", {})
        out[node.label] = {
            "stage": node.stage,
            "key": node.ref.key,
            "inputs": list(node.inputs),
            "done": manifest is not None,
            "recipe": identity.get("recipe", {}),
            "summary": _small(record.get("summary", {})),
            "seconds": duration(record.get("seconds")) if manifest else "",
            "cost": _cost(record) if manifest else "",
            "bytes": size(manifest.bytes) if manifest else "",
            "files": len(manifest.files) if manifest else 0,
            "numerics": record.get("numerics", {}),
            "code": identity.get("code", ""),
        }
    return out


def _cost(record: Mapping[str, Any]) -> str:
    """What the stage used of a machine, in the units that machines are paid in."""
    numerics = record.get("numerics", {})
    where = f"{numerics.get('processes', 1)} x {numerics.get('device', 'cpu')}"
    return (
        f"{duration(record.get('cpu_seconds'))} of CPU, {size(record.get('peak_bytes'))} of memory at most, on {where}"
    )


def _small(summary: Any, limit: int = 1500) -> Any:
    """A summary without its large parts: nested tables are shown elsewhere on the page."""
    if not isinstance(summary, Mapping):
        return summary
    return {key: value for key, value in summary.items() if len(repr(value)) <= limit // 5}


def graph(evidence: Evidence) -> Markup:
    """The stages in columns, one a round; edges run from what was read to what was made."""
    columns: dict[int, list[Node]] = {}
    for node in evidence.view.nodes:
        columns.setdefault(_column(node, evidence), []).append(node)
    at: dict[str, tuple[float, float]] = {}
    names = sorted(columns)
    for i, name in enumerate(names):
        ranked = sorted(columns[name], key=lambda node: ORDER.index(node.stage) if node.stage in ORDER else len(ORDER))
        for j, node in enumerate(ranked):
            at[node.label] = (MARGIN + i * (BOX + GAP), MARGIN + 22 + j * ROW)
    width = MARGIN * 2 + len(names) * (BOX + GAP) - GAP + ARC
    height = MARGIN * 2 + 22 + max(len(nodes) for nodes in columns.values()) * ROW
    heads = [
        Markup('<text class="column" x="{}" y="{}">{}</text>').format(
            MARGIN + i * (BOX + GAP), MARGIN + 8, _title(name, names)
        )
        for i, name in enumerate(names)
    ]
    edges = [_edge(source, target, at) for source, target in direct(evidence.view.nodes)]
    boxes = [_box(node, at[node.label], node.label in evidence.done) for node in evidence.view.nodes]
    return Markup(
        '<svg class="lineage" viewBox="0 0 {} {}" width="{}" height="{}" role="group" aria-label="Lineage">{}</svg>'
    ).format(width, height, width, height, Markup("").join([*heads, *edges, *boxes]))


def direct(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """The edges (source, target) that do not follow from others: without v0 -> compare where v0 -> evaluate -> compare."""
    before: dict[str, set[str]] = {}  # label -> everything it was made of; nodes come after their inputs
    edges = []
    for node in nodes:
        known = [source for source in node.inputs if source in before]
        implied = set().union(*(before[source] for source in known))
        before[node.label] = implied | set(known)
        edges += [(source, node.label) for source in known if source not in implied]
    return edges


def _column(node: Node, evidence: Evidence) -> int:
    """0 for what comes before the rounds, then the round; what looks at all versions stands last."""
    if node.stage in ("compare", "matrix"):
        return 10_000
    found = re.match(r"r(\d+)-", node.label)
    if found:
        return int(found[1])
    rounds = [label for label in (v.label for v in evidence.view.versions) if label not in ("base", "v0")]
    label = node.label.removesuffix("-evaluate").removesuffix("-gate")
    return rounds.index(label) + 1 if label in rounds else 0


def _title(column: int, names: Sequence[int]) -> str:
    return "start" if column == 0 else "all versions" if column == 10_000 else f"round {column}"


def _edge(source: str, target: str, at: Mapping[str, tuple[float, float]]) -> Markup:
    (x1, y1), (x2, y2) = at[source], at[target]
    y1, y2 = y1 + 14, y2 + 14
    if x1 == x2:  # inside a column: an arc on the right
        path = f"M{x1 + BOX} {y1}C{x1 + BOX + ARC} {y1} {x1 + BOX + ARC} {y2} {x2 + BOX} {y2}"
    else:
        bend = max(24.0, (x2 - x1 - BOX) / 2)
        path = f"M{x1 + BOX} {y1}C{x1 + BOX + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
    return Markup('<path class="edge" d="{}" data-from="{}" data-to="{}"/>').format(path, source, target)


def _box(node: Node, place: tuple[float, float], done: bool) -> Markup:
    x, y = place
    return Markup(
        '<g class="node{}" role="button" tabindex="0" data-node="{}" aria-label="{}" transform="translate({} {})">'
        '<rect width="{}" height="28" rx="4"/><text x="9" y="18">{}</text></g>'
    ).format("" if done else " waits", node.label, f"{node.label}: {node.stage}", x, y, BOX, _clip(node.label))


def _clip(label: str, most: int = 22) -> str:
    return label if len(label) <= most else label[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
