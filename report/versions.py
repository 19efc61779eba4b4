"""The headline: is the last version better, the table of all versions, and how they moved from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report.charts import Axis, Figure, Point, Series, figure
from report.evidence import FIRST, Evidence
from report.lineage import progress
from report.matrix import parting_text
from report.matrix import table as matrix_of
from report.quantities import NONE, interval, number, percent, signed

GOLD_KINDS = (("gold_helpfulness", "Gold helpfulness"), ("gold_safety", "Gold safety"))
REWARD_KINDS = (("helpfulness", "Helpfulness model"), ("safety", "Safety model"))


@dataclass(frozen=True)
class Cell:
    """One cell: the number, its interval in small print, and whether it stands out."""

    text: str
    small: str = ""
    mood: str = ""  # good, bad, or nothing


@dataclass(frozen=True)
class Headline:
    """A sentence that answers the question, and the numbers beside it: (name, value, small print, mood)."""

    sentence: str
    mood: str
    facts: Sequence[tuple[str, str, str, str]]


def headline(evidence: Evidence) -> Headline:
    """Compare the final version with v0: by gold where there is one, and by the reward models."""
    final = evidence.final
    if final is None or FIRST not in evidence.evaluated:
        return Headline(f"No version after {FIRST} has been evaluated yet: {progress(evidence)}.", "", ())
    gold, proxy = (evidence.pair(final, FIRST, measure) for measure in ("gold", "score"))
    sentence, mood = _answer(final, gold, proxy)
    for label in evidence.evaluated[evidence.evaluated.index(final) + 1 :]:
        verdict = evidence.verdicts.get(label, {})
        if verdict.get("verdict") == "rejected":
            why = next(reason["text"] for reason in verdict["reasons"] if reason["action"] == "reject")
            sentence += f" The gate rejected {label}: {why}."
    matrix = matrix_of(evidence)
    if matrix is not None and matrix["parting"]:
        sentence += f" {parting_text(matrix)}"
    entry, first = (evidence.standing.entries[label] for label in (final, FIRST))
    facts = []
    for column, name in GOLD_KINDS:
        if entry.get(column) and first.get(column):
            before, after = first[column], entry[column]
            way = "good" if after["low"] > before["high"] else "bad" if after["high"] < before["low"] else ""
            if way == "bad":
                sentence += f" Its {name.lower()} fell from {number(before['mean'])} to {number(after['mean'])}."
            facts.append((name, number(after["mean"]), f"{signed(after['mean'] - before['mean'])} since {FIRST}", way))
    chosen = gold or proxy
    if chosen:
        by = "by gold" if gold else "by the reward models"
        rate = chosen["win_rate"]
        facts.append((f"Wins over {FIRST}", percent(rate["mean"]), f"{interval(rate, percent)}, {by}", mood))
    if entry.get("kl"):
        facts.append((f"KL to {FIRST}", number(entry["kl"]["mean"], 1), "nats a response", ""))
    return Headline(sentence, mood, facts)


def _answer(final: str, gold: Mapping[str, Any] | None, proxy: Mapping[str, Any] | None) -> tuple[str, str]:
    if gold is None and proxy is None:
        return f"{final} was not compared with {FIRST}.", ""
    if gold is None:
        assert proxy is not None
        way = _way(proxy)
        return f"By its own reward models {final} is {way} {FIRST}. There is no gold judge here to confirm it.", ""
    way = _way(gold)
    by = gold["difference"]
    sentence = f"{final} is {way} {FIRST} by the gold judge: {signed(by['mean'])} ({interval(by, signed)})."
    if proxy and proxy["difference"]["low"] > 0 and gold["difference"]["low"] <= 0:
        return sentence + " Its reward models say that it is better: the score rose, the model did not.", "bad"
    return sentence, {"better than": "good", "worse than": "bad"}.get(way, "")


def _way(pair: Mapping[str, Any]) -> str:
    low, high = pair["difference"]["low"], pair["difference"]["high"]
    return "better than" if low > 0 else "worse than" if high < 0 else "not clearly different from"


def columns(evidence: Evidence) -> list[str]:
    """The head of the table; reward-model columns only where all versions are on one scale."""
    rewards = [name for _, name in REWARD_KINDS] if evidence.standing.one_scale else []
    gold = [name for column, name in GOLD_KINDS if _known(evidence, column)]
    kept = [name for (column, _), name in zip(REWARD_KINDS, rewards) if _known(evidence, column)]
    return ["Version", *gold, *kept, f"Wins over {FIRST}", "KL, nats", "Length, tokens", "No EOS", "Gate"]


def table(evidence: Evidence) -> list[tuple[str, list[Cell]]]:
    """One row a version of the campaign, also those that are not there yet."""
    shown = [column for column, _ in GOLD_KINDS if _known(evidence, column)]
    if evidence.standing.one_scale:
        shown += [column for column, _ in REWARD_KINDS if _known(evidence, column)]
    rows = []
    for version in evidence.view.versions:
        entry = evidence.standing.entries.get(version.label)
        if entry is None:
            state = "not evaluated yet" if evidence.archive.manifest(version.model) else "not made yet"
            rows.append((version.label, [Cell(state)]))
            continue
        cells = [_mean(entry.get(column)) for column in shown]
        cells.append(_wins(evidence, version.label))
        cells.append(Cell(number(entry["kl"]["mean"], 1)) if entry.get("kl") else Cell(NONE))
        cells += [
            Cell(number(entry["length"], 1)),
            Cell(percent(entry["missing_eos"], 1)),
            _gate(evidence, version.label),
        ]
        rows.append((version.label, cells))
    return rows


def _known(evidence: Evidence, column: str) -> bool:
    return any(entry.get(column) for entry in evidence.standing.entries.values())


def _mean(found: Mapping[str, Any] | None) -> Cell:
    return Cell(number(found["mean"]), interval(found)) if found else Cell(NONE)


def _wins(evidence: Evidence, label: str) -> Cell:
    pair = evidence.pair(label, FIRST, "gold") or evidence.pair(label, FIRST, "score")
    if pair is None:
        return Cell(NONE)
    rate = pair["win_rate"]
    mood = "good" if rate["low"] > 0.5 else "bad" if rate["high"] < 0.5 else ""
    return Cell(percent(rate["mean"]), interval(rate, percent), mood)


def _gate(evidence: Evidence, label: str) -> Cell:
    found = evidence.verdicts.get(label)
    if found is None:
        return Cell(NONE)
    by = {"gold": "by gold", "judge": "by the judge model", "score": "by reward models"}.get(str(found.get("by")), "")
    rules = ", ".join(reason["rule"] for reason in found.get("reasons", ()))
    return Cell(str(found["verdict"]), rules or by, {"rejected": "bad", "accepted": "good"}.get(found["verdict"], ""))


def gates(evidence: Evidence) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """(version, verdict, measured against, [(action, what was found)]) of every version that the gate has judged."""
    return [
        (label, found["verdict"], f"{found['best']} by {found['by']}",
         [(reason["action"], reason["text"]) for reason in found["reasons"]])
        for label, found in evidence.verdicts.items()
    ]  # fmt: skip


def movement(evidence: Evidence) -> list[Figure]:
    """Gold, reward models, win rate, length over the versions."""
    labels = evidence.evaluated
    if not labels:
        return []
    entries = evidence.standing.entries
    count = max(entry["prompts"] for entry in entries.values())
    axis = Axis("version", [(i, label) for i, label in enumerate(labels)], low=-0.3, high=len(labels) - 0.7)
    note = f"Mean over {count} held-out prompts; bars: 95% bootstrap interval over prompts."
    figures = []
    gold = _lines(labels, entries, GOLD_KINDS)
    if gold:
        figures.append(
            figure(
                "Gold scores", gold, axis, Axis("gold score"), caption=note + " The judge is never seen by training."
            )
        )
    rewards = _lines(labels, entries, REWARD_KINDS) if evidence.standing.one_scale else []
    if rewards:
        text = note + " All versions under the campaign's last reward models; raw scores, no unit."
        figures.append(figure("Reward-model scores", rewards, axis, Axis("raw score"), caption=text))
    wins = _win_lines(evidence, labels)
    if wins:
        text = f"Share of held-out prompts on which a version beats {FIRST}; a tie counts half. Bars: 95% interval."
        figures.append(
            figure(f"Wins over {FIRST}", wins, axis, Axis("win rate", room=0.08), caption=text, limits=[(0.5, "even")])
        )
    figures.append(_lengths(labels, entries, axis))
    return figures


def _lines(labels: Sequence[str], entries: Mapping[str, Any], kinds: Sequence[tuple[str, str]]) -> list[Series]:
    found = []
    for i, (column, name) in enumerate(kinds):
        points = [
            Point(x, e["mean"], f"{label}: {name.lower()} {number(e['mean'])} ({interval(e)})", e["low"], e["high"])
            for x, label in enumerate(labels)
            if (e := entries[label].get(column))
        ]
        if points:
            nudged = [Point(p.x + (0.06 if i else -0.06), p.y, p.tip, p.low, p.high) for p in points]
            found.append(Series(name, nudged, "ink" if i else "accent", dashed=bool(i)))
    return found


def _win_lines(evidence: Evidence, labels: Sequence[str]) -> list[Series]:
    found = []
    for measure, name, look in (("gold", "By gold", "accent"), ("score", "By the reward models", "ink")):
        points = []
        for x, label in enumerate(labels):
            if label == FIRST:
                points.append(Point(x, 0.5, f"{FIRST}: even with itself"))
            pair = evidence.pair(label, FIRST, measure)
            if pair:
                rate = pair["win_rate"]
                counts = f"{pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost"
                tip = f"{label}: {percent(rate['mean'])} ({interval(rate, percent)}); {counts}"
                points.append(Point(x, rate["mean"], tip, rate["low"], rate["high"]))
        if len(points) > 1:
            found.append(Series(name, points, look, dashed=measure == "score"))
    return found


def _lengths(labels: Sequence[str], entries: Mapping[str, Any], axis: Axis) -> Figure:
    lengths = [
        Point(x, entries[label]["length"], f"{label}: {number(entries[label]['length'], 1)} tokens, "
              f"{percent(entries[label]['missing_eos'], 1)} without EOS, repetition {percent(entries[label]['repetition'])}")
        for x, label in enumerate(labels)
    ]  # fmt: skip
    text = "Mean tokens of a response, EOS included. A score that rises with length alone is a warning."
    return figure("Response length", [Series("Length", lengths)], axis, Axis("tokens", room=0.12), caption=text)
