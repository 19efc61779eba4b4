"""engine.drawing: which prompts, in which parts (traps T57, T58, T61)."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.drawing import chunks, draw, fingerprint, fit, share_of, split
from engine.errors import StageError
from storage.rows import write_rows


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"p{i}",
            "messages": [{"role": "user", "content": str(i)}],
            "category": "c",
            "is_safety": False,
            "source": "s",
        }
        for i in range(50)
    ]
    write_rows(tmp_path / "rows.parquet", "Prompt", rows)
    return tmp_path / "rows.parquet"


def test_every_round_draws_fresh_prompts_until_all_have_been_used(prompts: Path) -> None:
    turns = [draw(prompts, 20, seed=1, stream="sample", turn=t) for t in (1, 2, 3, 4, 5)]
    assert all(len(set(t)) == 20 and t == sorted(t) for t in turns)
    assert not set(turns[0]) & set(turns[1])
    assert set(turns[0]) | set(turns[1]) | set(turns[2]) == set(range(50))  # 20 + 20 + 10 and the first 10 again
    assert len(set(turns[2]) & set(turns[0])) == 10
    assert sorted(p for t in turns for p in t) == sorted(2 * list(range(50)))  # no prompt twice before every one once


def test_a_draw_depends_on_seed_and_stage_only(prompts: Path) -> None:
    first = draw(prompts, 20, seed=1, stream="sample")
    assert first == draw(prompts, 20, seed=1, stream="sample")
    assert first != draw(prompts, 20, seed=2, stream="sample") and first != draw(prompts, 20, seed=1, stream="probe")
    assert draw(prompts, 99, seed=1, stream="sample") == list(range(50))


def test_an_empty_pool_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", "Prompt", [])
    with pytest.raises(StageError, match="no prompts"):
        draw(tmp_path / "rows.parquet", 5, seed=0, stream="sample")


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (3, 10), (7, 7), (1, 1), (100, 8)])
def test_parts_cover_everything_once(count: int, parts: int) -> None:
    places = list(range(count))
    assert [p for part in split(places, parts) for p in part] == places
    assert all(part for part in split(places, parts))
    assert max(map(len, split(places, parts))) - min(map(len, split(places, parts))) <= 1
    assert [p for part in chunks(places, parts) for p in part] == places
    assert max(map(len, chunks(places, parts))) <= parts


def test_prompts_that_never_fit_are_dropped_counted_and_listed(tmp_path: Path) -> None:
    def fit_prompt(messages: list[dict[str, str]], limit: int) -> list[dict[str, str]] | None:
        return messages if len(messages[-1]["content"]) <= limit else None

    ids = lambda messages: [len(messages[-1]["content"])]
    chat: Any = SimpleNamespace(fit_prompt=fit_prompt, prompt_ids=ids, asking=lambda messages: messages)
    rows = [{"id": i, "messages": [{"role": "user", "content": "x" * i}]} for i in (1, 9, 5)]
    kept, dropped = fit(chat, iter(rows), 5, tmp_path)
    assert ([(row["id"], ids) for row, ids in kept], dropped) == ([(1, [1]), (5, [5])], 1)
    fit(chat, iter(rows), 0, tmp_path)
    listed = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == [9, 1, 9, 5]
    assert listed[0]["reason"] == "system and last user turn are longer than limits.prompt_tokens 5"


def test_a_model_is_named_by_its_weights(tmp_path: Path) -> None:
    for name, data in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
    (tmp_path / "b" / "config.json").write_text("{}")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")
    (tmp_path / "none").mkdir()
    with pytest.raises(StageError, match=r"no \.safetensors"):
        fingerprint(tmp_path / "none")


def test_hash_shares_are_spread_evenly() -> None:
    shares = [share_of(str(i)) for i in range(2000)]
    assert all(0 <= s < 1 for s in shares)
    for edge in (0.1, 0.5, 0.9):
        assert abs(sum(s < edge for s in shares) / 2000 - edge) < 4 * (edge * (1 - edge) / 2000) ** 0.5
