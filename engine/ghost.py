"""Ghost Attention over stored dialogues: an instruction said once is kept (METHODS 3.5; the texts are methods/gatt.py).

A dialogue of several user turns gets an instruction. The model answers it turn by turn with the instruction before every
user turn, and is trained on the last of these answers with the instruction before the first one only.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.recipes import Gatt, Limits
from engine.drawing import share_of
from engine.generate import generate
from engine.template import Chat
from methods import gatt

Row = dict[str, Any]
Turns = list[dict[str, str]]


def ghosts(
    rows: Sequence[Row],
    recipe: Gatt,
    chat: Chat,
    model: Any,
    limits: Limits,
    seed: int,
    batch: int,
    counts: Counter[str],
) -> Iterator[Row]:
    """All rows in their order, those that are drawn in their new form; `counts` says how many there were.

    A row is drawn by its id. One whose prompt does not fit with the instruction before every turn, or that has it already,
    stays as it is and is counted.
    """
    drawn: dict[int, tuple[str, str]] = {}
    for place, row in enumerate(rows):
        users = [m for m in row["messages"] if m["role"] == "user"]
        if len(users) > 1 and share_of(f"{seed}:gatt:{row['id']}") < recipe.share:
            said = gatt.compose(recipe.constraints, recipe.short_forms, random.Random(f"{seed}:gatt:{row['id']}"))
            drawn[place] = said
    spoken = {place: [dict(m) for m in rows[place]["messages"]] for place in drawn}
    if recipe.answers == "sampled":
        lost = _answer(
            spoken, {p: full for p, (full, _) in drawn.items()}, rows, chat, model, limits, recipe, seed, batch
        )
        counts["gatt_too_long"] += len(lost)
        for place in lost:
            del drawn[place]
    for place, row in enumerate(rows):
        if place not in drawn:
            yield row
            continue
        try:
            messages = gatt.for_training(spoken[place], drawn[place][1])
        except ValueError:  # a turn that says it already
            counts["gatt_said_already"] += 1
            yield row
            continue
        counts["gatt"] += 1
        yield {**row, "messages": messages}


def _answer(
    spoken: Mapping[int, Turns],
    instructions: Mapping[int, str],
    rows: Sequence[Row],
    chat: Chat,
    model: Any,
    limits: Limits,
    recipe: Gatt,
    seed: int,
    batch: int,
) -> set[int]:
    """Put the model's answers in the place of the given ones, all dialogues' first turns at once, then the second ones, ..

    Returns the places of dialogues that do not fit the limits whole.
    """
    lost: set[int] = set()
    deepest = max((sum(m["role"] == "assistant" for m in turns) for turns in spoken.values()), default=0)
    for depth in range(deepest):
        asked: list[tuple[int, int, list[int]]] = []
        for place, turns in spoken.items():
            answers = [i for i, m in enumerate(turns) if m["role"] == "assistant"]
            if place in lost or depth >= len(answers):
                continue
            prompt = gatt.for_sampling(turns[: answers[depth]], instructions[place])
            ids = chat.prompt_ids(prompt)
            if len(ids) > limits.prompt_tokens:
                lost.add(place)
            else:
                asked.append((place, answers[depth], ids))
        found = generate(
            model, chat, [ids for *_, ids in asked], [(str(rows[place]["id"]), depth) for place, *_ in asked], seed=seed,
            stream="gatt", temperature=recipe.temperature, max_new_tokens=limits.response_tokens, rows=batch,
        )  # fmt: skip
        for (place, turn, _), response in zip(asked, found):
            text = chat.text(response.token_ids)
            if text.strip():
                spoken[place][turn]["content"] = text
            else:
                lost.add(place)
    return lost
