"""What the versions wrote: held-out responses side by side, and the few smoke prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report.evidence import Evidence
from report.quantities import number, percent

ROOM = 1_100_000  # bytes of response text in the page; prompts beyond are left out, evenly
LONGEST = 4000  # characters of one response or prompt
COLUMNS = ("gold_helpfulness", "gold_safety", "helpfulness", "safety", "kl")


@dataclass(frozen=True)
class Smoke:
    """One smoke prompt and what each version answered: (text, small print), None where it did not."""

    messages: Sequence[Mapping[str, str]]
    answers: Sequence[tuple[str, str] | None]


def side_by_side(evidence: Evidence) -> dict[str, Any]:
    """The held-out prompts with every version's response, for the page's own browser: plain data.

    {versions, columns, shown, total, prompts: [{category, is_safety, messages, answers}]} with one answer a version:
    [text, tokens, finish, *scores] or None.
    """
    rows = evidence.responses
    labels = [label for label in evidence.evaluated if label in rows]
    if not labels:
        return {"versions": [], "columns": COLUMNS, "shown": 0, "total": 0, "prompts": []}
    by_prompt = {label: {row["prompt_id"]: row for row in rows[label]} for label in labels}
    ids = list(dict.fromkeys(row["prompt_id"] for label in labels for row in rows[label]))
    cards = [_card(one, [by_prompt[label].get(one) for label in labels]) for one in ids]
    weight = sum(_weight(card) for card in cards)
    step = max(1, -(-weight // ROOM))
    kept = cards[::step]
    columns = [c for c in COLUMNS if any(row.get(c) is not None for label in labels for row in rows[label][:50])]
    places = [COLUMNS.index(column) for column in columns]
    for card in kept:
        card["answers"] = [
            answer and [*answer[:3], *(answer[3 + place] for place in places)] for answer in card["answers"]
        ]
    return {"versions": labels, "columns": columns, "shown": len(kept), "total": len(ids), "prompts": kept}


def _card(prompt: str, rows: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    known = next(row for row in rows if row is not None)
    return {
        "category": known["category"],
        "is_safety": known["is_safety"],
        "messages": [{"role": m["role"], "content": m["content"][:LONGEST]} for m in known["messages"]],
        "answers": [None if row is None else _answer(row) for row in rows],
    }


def _answer(row: Mapping[str, Any]) -> list[Any]:
    scores = [None if row.get(column) is None else round(row[column], 3) for column in COLUMNS]
    return [row["text"][:LONGEST], len(row["token_ids"]), row["finish"], *scores]


def _weight(card: Mapping[str, Any]) -> int:
    return sum(len(m["content"]) for m in card["messages"]) + sum(len(a[0]) + 60 for a in card["answers"] if a)


def smoke(evidence: Evidence) -> tuple[list[str], list[Smoke]]:
    """Labels of the versions that answered, and the smoke prompts with their answers, in the prompts' order."""
    found = {}
    for version in evidence.view.versions:
        answers = evidence.archive.json(version.evaluate, "smoke.json")
        if answers:
            found[version.label] = answers
    asked: dict[str, Any] = {}
    for answers in found.values():
        for answer in answers:
            asked.setdefault(repr(answer["messages"]), answer["messages"])
    cells = {label: {repr(a["messages"]): _smoke_cell(a) for a in answers} for label, answers in found.items()}
    return list(found), [Smoke(messages, [cells[label].get(key) for label in found]) for key, messages in asked.items()]


def _smoke_cell(answer: Mapping[str, Any]) -> tuple[str, str]:
    parts = [f"{answer['tokens']} tokens"]
    if answer.get("helpfulness") is not None:
        parts.append(f"helpfulness {number(answer['helpfulness'])}")
    if answer.get("safety") is not None:
        parts.append(f"safety {number(answer['safety'])}")
    if answer.get("repetition"):
        parts.append(f"repetition {percent(answer['repetition'])}")
    if answer["finish"] != "eos":
        parts.append("no EOS")
    return answer["response"], " \N{MIDDLE DOT} ".join(parts)
