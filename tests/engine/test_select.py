"""engine.select: the piecewise order and what a method makes of it (traps T24, T72, T76; METHODS 3.2 to 3.4, 3.7)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import methods
from configs.recipes import Select
from engine import select
from engine.errors import StageError
from engine.tables import read_table
from storage.rows import read_rows, write_rows


def scored(prompt: str, k: int, helpful: float, safe: float | None, **more: Any) -> dict[str, Any]:
    text = more.pop("text", f"{prompt} answer {k}")
    return {
        "prompt_id": prompt, "k": k, "messages": [{"role": "user", "content": prompt}], "category": "fact", "is_safety": False,
        "text": text, "token_ids": [5] * (k + 2), "finish": "eos", "policy": "abc", "temperature": 1.0, "source": "round-1",
        "helpfulness": helpful, "safety": safe, "rewards": "helpfulness:x,safety:y", **more,
    }  # fmt: skip


def selected(
    make_job: Any, tmp_path: Path, rows: list[dict[str, Any]], **recipe: Any
) -> tuple[Any, list[Any], list[Any]]:
    folder = tmp_path / "scored"
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):  # a prompt's rows may lie in several files
        write_rows(folder / f"scored-{number:05d}.parquet", "Scored", part)
    job = make_job("select", Select(**recipe), scored=[folder])
    summary = select.run(job)
    return summary, list(read_rows(job.out / "rows.parquet")), list(read_table(job.out / "audit.parquet"))


def winner(rows: list[dict[str, Any]]) -> str:
    return str(rows[0]["messages"][-1]["content"])


def test_the_branch_decides_before_the_score(make_job: Any, tmp_path: Path) -> None:
    """An unsafe response never wins against a safe one, however high its score (METHODS 3.2)."""
    rows = [scored("p", 0, 9.0, -1.80), scored("p", 1, -5.0, -1.70), scored("p", 2, 8.0, -3.0)]
    summary, found, audit = selected(make_job, tmp_path, rows)
    assert winner(found) == "p answer 1"
    assert [(a["branch"], a["score"], a["rank"], a["role"]) for a in audit] == [
        (0, pytest.approx(-1.80), 2, ""),
        (1, -5.0, 1, "selected"),
        (0, -3.0, 3, ""),
    ]
    assert (summary["rows"], summary["candidates"], summary["used"], summary["all_unsafe"]) == (1, 3, 1, 0)


def test_safety_prompts_are_ranked_by_safety(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", 0, 9.0, 0.5, is_safety=True), scored("p", 1, -9.0, 2.0, is_safety=True)]
    _, found, audit = selected(make_job, tmp_path, rows)
    assert winner(found) == "p answer 1" and found[0]["is_safety"]
    assert [a["score"] for a in audit] == [0.5, 2.0]


def test_without_a_safety_model_helpfulness_decides(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", 0, 1.0, None), scored("p", 1, 2.0, None)]
    assert winner(selected(make_job, tmp_path, rows)[1]) == "p answer 1"


def test_equal_scores_are_chosen_evenly(make_job: Any, tmp_path: Path) -> None:
    """T72: no first-index bias; 400 prompts of 4 equal candidates, expected 100 each, sd 8.7."""
    rows = [scored(f"p{i}", k, 1.0, 0.0) for i in range(400) for k in range(4)]
    summary, _, audit = selected(make_job, tmp_path, rows)
    wins = Counter(a["k"] for a in audit if a["role"] == "selected")
    assert sum(wins.values()) == 400 and all(65 <= wins[k] <= 135 for k in range(4))
    assert summary["no_signal"] == 400


def test_the_choice_depends_on_seed_and_prompt_not_on_order(make_job: Any, tmp_path: Path) -> None:
    rows = [scored(f"p{i}", k, 1.0, 0.0) for i in range(60) for k in range(4)]
    texts = lambda found: {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in found}
    first = texts(selected(make_job, tmp_path, rows)[1])
    assert first == texts(
        selected(make_job, tmp_path, [r for i in range(59, -1, -1) for r in rows[4 * i : 4 * i + 4]])[1]
    )
    assert first != texts(selected(make_job, tmp_path, rows, seed=1)[1])


def test_all_rounds_compete_or_only_the_newest(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", 0, 3.0, 0.0), scored("p", 1, 2.0, 0.0, source="round-2"), scored("q", 0, 1.0, 0.0)]
    summary, found, _ = selected(make_job, tmp_path, rows)
    assert [winner([row]) for row in found] == ["p answer 0", "q answer 0"]
    assert summary["sources"] == {"round-1": 2}
    summary, found, audit = selected(make_job, tmp_path, rows, rounds="previous")
    assert [winner([row]) for row in found] == ["p answer 1"] and len(audit) == 1
    assert summary["sources"] == {"round-2": 1}


def test_round_10_is_newer_than_round_9(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", 0, 3.0, 0.0, source="round-9"), scored("p", 1, 2.0, 0.0, source="round-10")]
    assert winner(selected(make_job, tmp_path, rows, rounds="previous")[1]) == "p answer 1"


def test_scores_of_different_reward_models_are_never_compared(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", 0, 3.0, 0.0), scored("p", 1, 2.0, 0.0, rewards="helpfulness:other,safety:y")]
    with pytest.raises(StageError, match="2 different sets of reward models"):
        selected(make_job, tmp_path, rows)


def test_truncated_responses_do_not_win_and_a_prompt_may_go_without(make_job: Any, tmp_path: Path) -> None:
    rows = [
        scored("p", 0, 9.0, 0.0, finish="length"),
        scored("p", 1, 1.0, 0.0),
        scored("q", 0, 9.0, 0.0, finish="length"),
    ]
    summary, found, _ = selected(make_job, tmp_path, rows)
    assert [winner([row]) for row in found] == ["p answer 1"]
    assert (summary["prompts"], summary["without_winner"], summary["unfinished_used"]) == (2, 1, 0)
    summary, found, _ = selected(make_job, tmp_path, rows, config={"truncated": "keep"})
    assert (len(found), summary["unfinished_used"]) == (2, 2)


def test_a_method_that_keeps_several_makes_several_rows(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", k, float(k), 0.0) for k in range(4)] + [scored("p", 9, 3.0, 0.0, text="p answer 3")]
    summary, found, audit = selected(make_job, tmp_path, rows, config={"keep": 2})
    assert [winner([row]) for row in found] == ["p answer 3", "p answer 2"]  # equal texts count once
    assert len({row["id"] for row in found}) == 2 and summary["duplicates"] == 1
    assert Counter(a["role"] for a in audit) == {"selected": 2, "": 3}


SELECTING = [name for name in methods.names() if "select" in methods.describe(name).hooks]


@pytest.mark.parametrize("method", SELECTING)
def test_every_method_that_selects_makes_rows_of_a_type_and_marks_them(
    make_job: Any, tmp_path: Path, method: str
) -> None:
    rows = [scored(f"p{i}", k, float((k * 7 + i) % 5), (k * 3 + i) % 4 - 2.5) for i in range(12) for k in range(5)]
    summary, found, audit = selected(make_job, tmp_path, rows, method=method)
    assert found and summary["rows"] == len(found) and summary["used"] > 0
    texts = {row["text"] for row in rows}
    used = {a["text"] for a in audit if a["role"]}
    for row in found:
        said = (
            [row["messages"][-1]["content"]]
            if "id" in row
            else row.get("responses") or [row["chosen"], row["rejected"]]
        )
        assert set(said) <= texts & used
    assert len(audit) == 60 and {a["role"] for a in audit} <= {"", "selected", "chosen", "rejected", "ranked"}


def test_a_condition_ends_the_last_user_turn_and_the_wanted_one_is_kept(make_job: Any, tmp_path: Path) -> None:
    rows = [scored("p", k, float(k), 0.0) for k in range(3)]  # z-scores -1, 0, 1
    _, found, _ = selected(make_job, tmp_path, rows, method="conditional")
    assert [row["messages"][-2]["content"] for row in found] == [
        "p <rm_score>: -1.00",
        "p <rm_score>: 0.00",
        "p <rm_score>: 1.00",
    ]
    wanted = json.loads((tmp_path / "out" / "condition.json").read_text())
    assert wanted == {"text": " <rm_score>: 1.00"}  # the goal of 2 is above the best that was seen


def test_responses_of_different_prompts_are_compared_in_the_unit_of_the_model_that_judged_them(
    make_job: Any, tmp_path: Path
) -> None:
    """Helpfulness -8 .. -5, safety 2 .. 5: raw, the upper half of the pool would be the safety prompt's alone."""
    rows = [scored("p", k, k - 8.0, 9.0) for k in range(4)]
    rows += [scored("q", k, 50.0, k + 2.0, is_safety=True) for k in range(4)]
    _, found, audit = selected(make_job, tmp_path, rows, method="filtered", config={"quantile": 0.5})
    assert sorted(row["messages"][-1]["content"] for row in found) == [
        f"{prompt} answer {k}" for prompt in "pq" for k in (1, 2, 3)
    ]  # z is -1.16, -0.39, 0.39, 1.16 in both; half of the eight do not exceed -0.39
    assert sorted(a["score"] for a in audit) == [-8.0, -7.0, -6.0, -5.0, 2.0, 3.0, 4.0, 5.0]
    _, found, _ = selected(make_job, tmp_path, rows, method="conditional", config={"decimals": 0, "prefix": "|"})
    asked = json.loads((tmp_path / "out" / "condition.json").read_text())["text"]
    said = {row["messages"][0]["content"] for row in found}
    assert {f"p{asked}", f"q{asked}"} <= said, "what is asked for was seen on both kinds of prompts"


@pytest.mark.parametrize("truncated", ["exclude", "keep"])
def test_a_quantile_is_of_the_responses_that_may_be_chosen(make_job: Any, tmp_path: Path, truncated: str) -> None:
    """Eight, of which the better half was cut: without them the best quarter is one of the other four."""
    rows = [scored("p", k, float(k), 0.0, finish="length" if k > 3 else "eos") for k in range(8)]
    _, found, _ = selected(make_job, tmp_path, rows, method="filtered", config={"truncated": truncated})
    taken = {"exclude": (2, 3), "keep": (5, 6, 7)}[truncated]  # three quarters do not exceed the first of them
    assert sorted(winner([row]) for row in found) == [f"p answer {k}" for k in taken]


def test_nothing_to_select_is_an_error(make_job: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="selected nothing from 1 responses"):
        selected(make_job, tmp_path, [scored("p", 0, 1.0, 0.0, finish="length")])
    with pytest.raises(StageError, match="no scored responses"):
        selected(make_job, tmp_path, [])
    with pytest.raises(StageError, match="method sft has no select"):
        selected(make_job, tmp_path, [scored("p", 0, 1.0, 0.0)], method="sft")


@pytest.mark.parametrize("files", [128, 3])  # as many as are open at once
def test_many_buckets_give_the_same_rows(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    rows = [scored(f"p{i}", k, float(k * i % 7), 0.0) for i in range(100) for k in range(3)]
    whole = selected(make_job, tmp_path, rows)
    monkeypatch.setattr(select, "BUCKET_ROWS", 40)
    monkeypatch.setattr(select, "BUCKETS", files)
    parts = selected(make_job, tmp_path, rows)
    key = lambda row: row["id"]
    assert parts[0] == whole[0] and sorted(parts[1], key=key) == sorted(whole[1], key=key) and len(parts[2]) == 300
