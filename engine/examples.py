"""Stored rows -> token ids ready to train on, with every row that is shortened or left out counted."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configs.recipes import Limits
from engine.errors import StageError
from engine.template import Chat

Row = Mapping[str, Any]
Ids = np.ndarray  # [n] int32 token ids
UNKNOWN = -1.0  # a label that nobody gave


@dataclass(frozen=True, eq=False)
class Item:
    """One training row: a prompt and its responses (pair: chosen, rejected; example: one)."""

    prompt: Ids
    responses: tuple[Ids, ...]
    learned: tuple[np.ndarray | None, ...]  # for each response which tokens count; None = all
    scores: tuple[float, ...]
    labels: tuple[tuple[float, ...], ...] = ()  # for each response its A labels, UNKNOWN where there is none
    grade: float = 0.0
    weight: float = 1.0
    key: str = ""  # the prompt; rows of one key stay together where the loop asks for it
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response with its prompt."""
        return [len(self.prompt) + len(response) for response in self.responses]

    def pairs(self) -> list[tuple[Ids, Ids]]:
        """(prompt, response) of each response."""
        return [(self.prompt, response) for response in self.responses]


class Reader:
    """Reads rows of one kind for one method; `counts` says what became of them."""

    def __init__(self, chat: Chat, limits: Limits, method: Any, config: Any) -> None:
        self.chat, self.limits, self.method, self.config = chat, limits, method, config
        self.turns = getattr(config, "turns", "last")
        self.counts: Counter[str] = Counter()
        told = method.target(config) if hasattr(method, "target") else ""  # a condition takes no room from the prompt
        self.room = limits.prompt_tokens + (len(chat.response_ids(told)) + 2 if told else 0)

    @property
    def schema(self) -> str:
        """The row type that the method's columns ask for."""
        columns = self.method.columns
        return "Preference" if "chosen" in columns else "Ranking" if "responses" in columns else "Example"

    def read(self, rows: Iterable[Row]) -> Iterator[Item]:
        """Items of the rows that can be trained on, in order; a row is read when its item is asked for."""
        return (item for row in rows if (item := self.item(row)) is not None)

    def item(self, row: Row) -> Item | None:
        """One row's item; None if nothing of it can be trained on, which is counted."""
        self.counts["rows"] += 1
        messages = list(row["messages"])
        if self.schema == "Example":
            if not messages or messages[-1]["role"] != "assistant":
                raise StageError(f"row {row.get('id', '')}: an example ends with an assistant turn")
            return self._example(row, messages)
        prompt = self._prompt(row, messages)
        if prompt is None:
            return None
        if self.schema == "Preference":
            return self._pair(row, prompt)
        return self._ranking(row, prompt)

    def _prompt(self, row: Row, messages: list[dict[str, str]]) -> list[dict[str, str]] | None:
        if hasattr(self.method, "condition") and (more := self.method.condition(row, self.config)):
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + more}]
        fitted = self.chat.fit_prompt(messages, self.room)
        if fitted is None:
            self.counts["dropped_long_prompt"] += 1
        elif len(fitted) < len(messages):
            self.counts["shortened_prompts"] += 1
        if fitted is None or self.schema == "Example":  # an example says itself what it is conditioned on
            return fitted
        return self.chat.asking(fitted)

    def _ids(self, text: str) -> Ids:
        """A response, cut on the right; a cut one has no EOS, so that nobody learns to end there (METHODS 1.2)."""
        ids = self.chat.response_ids(text)
        if len(ids) > self.limits.response_tokens:
            self.counts["cut_responses"] += 1
        return np.array(ids[: self.limits.response_tokens], dtype=np.int32)

    def _example(self, row: Row, messages: list[dict[str, str]]) -> Item | None:
        prompt = self._prompt(row, messages[:-1])
        if prompt is None:
            return None
        response = self._ids(messages[-1]["content"])
        ids, learned = np.array(self.chat.prompt_ids(prompt), dtype=np.int32), None
        if self.turns == "all" and any(m["role"] == "assistant" for m in prompt):
            whole, marks = self.chat.example_ids([*prompt, messages[-1]], "all")
            first = marks.index(True)
            ids = np.array(whole[:first], dtype=np.int32)
            kept = len(whole) - len(self.chat.response_ids(messages[-1]["content"])) + len(response)
            response, learned = np.array(whole[first:kept], dtype=np.int32), np.array(marks[first:kept])
        weight = row.get("weight")
        return Item(ids, (response,), (learned,), (0.0,), weight=1.0 if weight is None else float(weight),
                    key=_key(messages), tags={"source": row["source"]})  # fmt: skip

    def _pair(self, row: Row, prompt: list[dict[str, str]]) -> Item | None:
        responses = (self._ids(row["chosen"]), self._ids(row["rejected"]))
        if np.array_equal(*responses):
            self.counts["same_after_cut"] += 1
            return None
        labels = tuple(
            (UNKNOWN if row.get(name) is None else float(row[name]),) for name in ("chosen_safe", "rejected_safe")
        )
        grade = row.get("grade")
        tags = {name: row[name] for name in ("kind", "source", "grade") if row.get(name) is not None}
        return Item(np.array(self.chat.prompt_ids(prompt), dtype=np.int32), responses, (None, None), (1.0, 0.0), labels,
                    grade=0.0 if grade is None else float(grade), key=_key(row["messages"]), tags=tags)  # fmt: skip

    def _ranking(self, row: Row, prompt: list[dict[str, str]]) -> Item | None:
        count = len(row["responses"])
        scores = row.get("scores") or [0.0] * count
        given = row.get("attributes") or [[] for _ in range(count)]
        seen: dict[bytes, int] = {}
        responses = [self._ids(text) for text in row["responses"]]
        for place, ids in enumerate(responses):
            seen.setdefault(ids.tobytes(), place)
        kept = sorted(seen.values())
        self.counts["same_after_cut"] += count - len(kept)
        if not kept or (len(kept) < 2 and "scores" in self.method.columns):
            self.counts["dropped_no_choice"] += 1
            return None
        labels = tuple(tuple(UNKNOWN if v is None else float(v) for v in given[i]) for i in kept)
        return Item(np.array(self.chat.prompt_ids(prompt), dtype=np.int32), tuple(responses[i] for i in kept),
                    (None,) * len(kept), tuple(float(scores[i]) for i in kept), labels, key=_key(row["messages"]),
                    tags={"source": row["source"]})  # fmt: skip


def _key(messages: Sequence[Mapping[str, str]]) -> str:
    """A prompt as one string: its turns up to the response."""
    turns = [m for m in messages if m["role"] != "assistant"]
    return json.dumps([m["content"] for m in turns], ensure_ascii=False)
