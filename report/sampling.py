"""Sampling and selection: what more samples gain (figure 7), which temperature (figure 8), who was chosen and why."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from report.archive import Archive, Row
from report.charts import SMALL, Axis, Figure, Point, Series, figure, look
from report.evidence import Evidence
from report.quantities import NONE, number, percent, signed
from report.view import Node

AUDIT_PROMPTS = 24  # of each round, drawn by the hash of their id; the rest stay in audit.parquet
COLUMNS = ("source", "temperature", "helpfulness", "safety", "branch", "score", "rank", "role", "finish", "text")
KINDS = (("helpfulness", False), ("safety", True))
Gains = dict[str, dict[int, list[tuple[float, float]]]]  # kind -> N -> (best, median) of each prompt


@dataclass
class Selection:
    """One round's selection as the report shows it.

    gain: kind -> n -> (mean over prompts of the expected best of n, of the expected median of n), newest round's samples.
    prompts: a sample of prompts with all their candidates, best first.
    """

    label: str
    summary: Mapping[str, Any]
    gain: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)
    prompts: list[dict[str, Any]] = field(default_factory=list)


def order_statistic(scores: Sequence[float], n: int, rank: int) -> float:
    """Expected `rank`-th smallest of n of the scores, drawn without replacement: exact, no bootstrap."""
    ranked, size = sorted(scores), len(scores)
    total = math.comb(size, n)
    return sum(
        math.comb(i - 1, rank - 1) * math.comb(size - i, n - rank) / total * score for i, score in enumerate(ranked, 1)
    )


def best_and_median(scores: Sequence[float], n: int) -> tuple[float, float]:
    """Expected maximum and expected median of n of the scores."""
    middle = (order_statistic(scores, n, (n + 1) // 2) + order_statistic(scores, n, n // 2 + 1)) / 2
    return order_statistic(scores, n, n), middle


def selections(evidence: Evidence) -> list[Selection]:
    """Every finished selection, read once."""
    asked = _asked(evidence)
    found = []
    for node in evidence.view.doing("select"):
        if evidence.archive.manifest(node.ref) is not None:
            found.append(_selection(evidence.archive, node, asked))
    return found


def _asked(evidence: Evidence) -> dict[str, list[dict[str, str]]]:
    """prompt id -> messages, of the campaign's training prompts."""
    node = evidence.view.node("prompts")
    rows = evidence.archive.rows(node.ref, "rows.parquet") if node else iter(())
    return {row["id"]: row["messages"] for row in rows}


def _selection(archive: Archive, node: Node, asked: Mapping[str, Any]) -> Selection:
    found = Selection(node.label, archive.summary(node.ref))
    gains: dict[int, Gains] = {}
    sample: list[tuple[str, dict[str, Any]]] = []
    for prompt, rows in _by_prompt(archive.rows(node.ref, "audit.parquet")):
        _measure(gains, rows)
        sample.append((hashlib.sha256(prompt.encode()).hexdigest(), _card(prompt, rows, asked)))
        sample = sorted(sample, key=lambda pair: pair[0])[:AUDIT_PROMPTS]
    found.gain = _means(gains[max(gains)]) if gains else {}
    found.prompts = [card for _, card in sample]
    return found


def _measure(gains: dict[int, Gains], rows: Sequence[Row]) -> None:
    """Add one prompt's expected best and median of N, apart for each round that answered it."""
    for kind, is_safety in KINDS:
        if rows[0]["is_safety"] != is_safety:
            continue
        scores: dict[int, list[float]] = {}
        for row in rows:
            if row[kind] is not None:
                scores.setdefault(_round(row["source"]), []).append(row[kind])
        for turn, values in scores.items():
            for n in _powers(len(values)):
                gains.setdefault(turn, {}).setdefault(kind, {}).setdefault(n, []).append(best_and_median(values, n))


def _means(gains: Gains) -> dict[str, dict[int, tuple[float, float]]]:
    """Means over prompts, for those N that every prompt has: a mean over other prompts would mislead."""
    found = {}
    for kind, by_n in gains.items():
        whole = max(len(pairs) for pairs in by_n.values())
        found[kind] = {
            n: (statistics.fmean(best for best, _ in pairs), statistics.fmean(middle for _, middle in pairs))
            for n, pairs in sorted(by_n.items())
            if len(pairs) == whole
        }
    return found


def _by_prompt(rows: Iterator[Row]) -> Iterator[tuple[str, list[Row]]]:
    for prompt, group in groupby(rows, key=lambda row: row["prompt_id"]):
        yield prompt, list(group)


def _round(source: str) -> int:
    tail = source.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def _powers(most: int) -> list[int]:
    return sorted({2**e for e in range(most.bit_length())} | {most})


def _card(prompt: str, rows: Sequence[Row], asked: Mapping[str, Any]) -> dict[str, Any]:
    ranked = sorted(rows, key=lambda row: row["rank"])
    return {
        "id": prompt,
        "category": rows[0]["category"],
        "is_safety": rows[0]["is_safety"],
        "messages": asked.get(prompt, []),
        "candidates": [[_short(row[column]) for column in COLUMNS] for row in ranked],
    }


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def gain_figures(found: Sequence[Selection]) -> list[Figure]:
    """Figure 7: expected best and median of N samples, one figure a round and kind."""
    out = []
    for selection in found:
        for kind, by_n in selection.gain.items():
            if len(by_n) < 2:
                continue
            x = Axis("samples a prompt, N", [(math.log2(n), str(n)) for n in by_n])
            lines = []
            for place, name, shade in ((0, "best of", "accent"), (1, "median of", "ink")):
                points = [
                    Point(math.log2(n), pair[place], f"{name} {n}: {number(pair[place])}") for n, pair in by_n.items()
                ]
                lines.append(Series(f"{name} N", points, shade, dashed=bool(place)))
            title = f"{selection.label}, {kind}"
            out.append(figure(title, lines, x, Axis(""), size=SMALL))
    return out


def probe_figures(evidence: Evidence) -> list[Figure]:
    """Figure 8: expected best of N over the sampling temperature, one figure a round."""
    out = []
    for node in evidence.view.doing("probe"):
        found = evidence.archive.json(node.ref, "probe.json")
        if not found:
            continue
        sizes = sorted((int(n) for n in found["curve"][0]["expected_max_of"]), reverse=True)
        series = []
        for i, n in enumerate(sizes):
            points = [
                Point(
                    p["temperature"],
                    p["expected_max_of"][str(n)],
                    f"T {p['temperature']}: best of {n} {number(p['expected_max_of'][str(n)])}, {p['length']:.1f} tokens",
                    tag="chosen" if n == sizes[0] and p["temperature"] == found["temperature"] else "",
                )
                for p in found["curve"]
            ]
            series.append(Series(f"best of {n}", points, look(len(sizes) - i, len(sizes) + 1)))
        title = f"{node.label}: T = {found['temperature']} over {found['prompts']} prompts"
        at = [(p["temperature"], f"{p['temperature']:g}") for p in found["curve"]]
        x = Axis("temperature", at if len(at) <= 6 else ())
        out.append(figure(title, series, x, Axis(""), size=SMALL))
    return out


def diversity_figures(evidence: Evidence) -> list[Figure]:
    """Figure 21: self-BLEU of the responses to a prompt over the sampling temperature, one line a round."""
    probes = [(node.label, evidence.archive.json(node.ref, "probe.json")) for node in evidence.view.doing("probe")]
    known = [
        (label, found["curve"]) for label, found in probes if found and found["curve"][0].get("self_bleu") is not None
    ]
    if not known:
        return []
    series = []
    for i, (label, curve) in enumerate(known):
        tip = "{}: self-BLEU {} at T {}".format
        points = [
            Point(p["temperature"], p["self_bleu"], tip(label, number(p["self_bleu"]), p["temperature"])) for p in curve
        ]
        series.append(Series(label, points, look(i + 1, len(known) + 1)))
    caption = (
        "Self-BLEU of the responses to a prompt, mean over the probe's prompts: 1 = always the same words, lower = more "
        "diverse. A line that rises from round to round is a policy that has less and less to choose from."
    )
    at = [(p["temperature"], f"{p['temperature']:g}") for p in known[0][1]]
    x = Axis("temperature", at if len(at) <= 6 else ())
    return [figure("Diversity over the temperature (figure 21)", series, x, Axis("self-BLEU"), caption=caption)]


HEAD = (
    "Selection",
    "Prompts",
    "Candidates",
    "Best minus median",
    "Winners from",
    "Tokens, winner / mean",
    "All equal",
    "None safe",
    "No winner",
)


def rows(found: Sequence[Selection]) -> list[list[str]]:
    """One row a round: what the selection did (METHODS 3.7)."""
    out = []
    for selection in found:
        s = selection.summary
        sources = s.get("sources", {})
        total = sum(sources.values()) or 1
        gap = s["best_score"] - s["median_score"] if "best_score" in s and "median_score" in s else None
        prompts = s.get("prompts") or 0
        won = prompts - s.get("without_winner", 0)
        winner = (
            s["used_length"] * prompts / won if won and "used_length" in s else None
        )  # its mean counts no winner as 0
        shares = [
            percent(s.get(name, 0) / prompts) if prompts else NONE
            for name in ("no_signal", "all_unsafe", "without_winner")
        ]
        out.append(
            [
                selection.label,
                number(s.get("prompts")),
                number(s.get("candidates")),
                signed(gap),
                ", ".join(f"{name.replace('round-', 'r')} {percent(count / total)}" for name, count in sources.items())
                or NONE,
                f"{number(winner, 1)} / {number(s.get('length'), 1)}",
                *shares,
            ]
        )
    return out
