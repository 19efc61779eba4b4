"""Ghost Attention at SFT: who answers what, what is trained, and what stays as it was."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from configs import Runtime
from configs.recipes import Gatt, Limits, Train
from engine import train
from engine.examples import Reader
from engine.ghost import ghosts
from engine.models import load_policy
from methods import sft
from storage.rows import write_rows

LIMITS = Limits(prompt_tokens=115, response_tokens=6)
RULE, SHORT = "the old tree", "the bird"
GATT = Gatt(constraints=(RULE,), short_forms=(SHORT,), temperature=1.0)


def row(number: int, turns: int = 3, **more: Any) -> dict[str, Any]:
    said = [
        {"role": role, "content": f"{role[0]}{i} of {number}"} for i in range(turns) for role in ("user", "assistant")
    ]
    return {"id": f"d{number}", "messages": said, "category": "c", "is_safety": False, "source": "s", **more}


def turned(rows: list[dict[str, Any]], recipe: Gatt, chat: Any, policy: Path, limits: Limits = LIMITS) -> Any:
    counts: Counter[str] = Counter()
    model = load_policy(policy, Runtime())
    return list(ghosts(rows, recipe, chat, model, limits, 3, 16, counts)), counts


def test_instruction_is_said_once_and_answers_are_the_models_own(chat: Any, policy: Path) -> None:
    given = [row(i) for i in range(12)]
    found, counts = turned(given, GATT, chat, policy)
    assert counts["gatt"] == 12
    for before, after in zip(given, found):
        texts = [m["content"] for m in after["messages"]]
        assert sum(RULE in t or SHORT in t for t in texts) == 1 and texts[0].endswith(f" u0 of {before['id'][1:]}")
        assert [m["role"] for m in after["messages"]] == [m["role"] for m in before["messages"]]
        assert all(a != b["content"] for a, b in zip(texts[1::2], before["messages"][1::2])), "answers are sampled"
        assert texts[2::2] == [m["content"] for m in before["messages"][2::2]], "later questions stay"
    first = {f["messages"][0]["content"].split(" u0")[0] for f in found}
    assert first == {RULE, SHORT}, "half of them in short"


def test_only_the_last_answer_is_learned(chat: Any, policy: Path) -> None:
    """T84, through the reader that training uses."""
    (found,), _ = turned([row(1)], GATT, chat, policy)
    item = Reader(chat, LIMITS, sft, sft.Config()).item(found)
    assert item is not None and item.learned == (None,)
    assert item.responses[0].tolist() == chat.response_ids(found["messages"][-1]["content"])[: LIMITS.response_tokens]
    prompt = chat.tokenizer.decode(item.prompt.tolist())
    assert prompt.count(RULE) + prompt.count(SHORT) == 1 and found["messages"][3]["content"] in prompt


def test_given_answers_can_be_kept(chat: Any, policy: Path) -> None:
    given = [row(1)]
    (found,), _ = turned(given, GATT.model_copy(update={"answers": "given"}), chat, policy)
    assert [m["content"] for m in found["messages"]][1:] == [m["content"] for m in given[0]["messages"]][1:]


def test_share_single_turns_long_and_repeated_ones(chat: Any, policy: Path) -> None:
    many = [row(i) for i in range(200)]
    half, counts = turned(many, GATT.model_copy(update={"share": 0.5, "answers": "given"}), chat, policy)
    assert 70 < counts["gatt"] < 130 and sum(a is b for a, b in zip(half, many)) == 200 - counts["gatt"]
    single, counts = turned([row(1, turns=1)], GATT, chat, policy)
    assert single == [row(1, turns=1)] and not counts["gatt"]
    _, counts = turned([row(1)], GATT, chat, policy, Limits(prompt_tokens=30, response_tokens=8))
    assert counts["gatt_too_long"] == 1 and not counts["gatt"]
    twice = row(1)
    twice["messages"][2]["content"] = f"{RULE} {SHORT} again"
    kept, counts = turned([twice], GATT.model_copy(update={"answers": "given"}), chat, policy)
    assert kept == [twice] and counts["gatt_said_already"] == 1


def test_the_switch_at_sft(chat: Any, policy: Path, make_job: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows" / "rows.parquet", "Example", [row(i) for i in range(8)])
    recipe = Train(method="sft", epochs=1, batch_size=4, limits=LIMITS, gatt=GATT)
    summaries = [
        train.run(make_job("train", one, out=f"o{i}", model=policy, rows=[tmp_path / "rows"]))
        for i, one in enumerate((recipe, recipe, recipe.model_copy(update={"gatt": None})))
    ]
    assert summaries[0] == summaries[1] and summaries[0]["read"]["gatt"] == 8 and "gatt" not in summaries[2]["read"]
    weights = [(tmp_path / f"o{i}" / "model.safetensors").read_bytes() for i in range(3)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({"constraints": ()}, "at least 1 item"), ({"short_forms": ("a", "b")}, "1 constraints and 2 short forms")],
)
def test_instructions_that_do_not_match_are_refused(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        Gatt(**{"constraints": (RULE,), "short_forms": (SHORT,), **changes})
