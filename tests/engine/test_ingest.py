"""engine.ingest: validated, mixed and split rows (traps T63, T77)."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from configs.recipes import Ingest, Source
from engine import ingest
from engine.errors import StageError
from engine.formats import first_user_turn
from storage.rows import read_rows

DATA = Path(os.environ.get("ROUNDHOUSE_DATA", Path(__file__).resolve().parents[2].parent / "shared"))
needs_data = pytest.mark.skipif(not (DATA / "data/hh_harmless").is_dir(), reason="no real data: set ROUNDHOUSE_DATA")


def lines(path: Path, rows: list[Any]) -> Source:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(path=str(path))


def pairs(count: int, word: str = "p") -> list[dict[str, str]]:
    return [{"prompt": f"{word} {i}", "response": f"answer {i}"} for i in range(count)]


def ingested(
    make_job: Any, rows: str, *sources: Source, **settings: Any
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    job = make_job("ingest", Ingest(rows=rows, sources=sources, **settings))
    summary = ingest.run(job)
    held = job.out / "held_out.parquet"
    return summary, list(read_rows(job.out / "rows.parquet")), list(read_rows(held)) if held.exists() else []


def test_refused_rows_are_counted_and_listed_with_their_place(make_job: Any, tmp_path: Path) -> None:
    bad = ['{"prompt": "x", "response": NaN}', {"prompt": "x"}, {"prompt": "y", "response": ""}]
    source = lines(tmp_path / "a.jsonl", [*pairs(30), *bad])
    summary, rows, held = ingested(make_job, "examples", source, max_rejected=0.1)
    assert (summary["rows"], summary["read"], summary["rejected"], len(rows), held) == (30, 33, 3, 30, [])
    assert summary["rejected_by_reason"] == {
        "column .. is empty": 1,
        "column .. is missing": 1,
        "number NaN is not finite": 1,
    }
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["place"].rpartition(":")[2] for entry in listed] == ["31", "32", "33"]
    assert listed[0]["reason"] == "number NaN is not finite"


def test_a_secret_in_a_refused_row_is_not_written_down(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-in-a-column")
    source = lines(tmp_path / "a.jsonl", [*pairs(30), {"planted-in-a-column": "Hi"}])
    ingested(make_job, "examples", source, max_rejected=0.1)
    listed = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "[redacted]" in listed and "planted-in-a-column" not in listed


def test_too_many_refused_rows_fail_the_stage_and_name_the_first(make_job: Any, tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", [*pairs(18), {"prompt": "x"}, "{"])
    with pytest.raises(
        StageError, match=r"2 of 20 rows are malformed, max_rejected is 0.05: .*a.jsonl:19: column 'response'"
    ):
        ingested(make_job, "examples", source)
    summary, _, _ = ingested(make_job, "examples", source, max_rejected=0.1)
    assert summary["rejected"] == 2


def test_nothing_left_is_an_error(make_job: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no examples left to train on"):
        ingested(make_job, "examples", lines(tmp_path / "a.jsonl", ["{}"]), max_rejected=1.0)


def test_the_split_is_disjoint_and_stable_under_appending_and_reordering(make_job: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}?", "chosen": f"yes {j}", "rejected": "no"} for i in range(120) for j in range(2)]
    _, train, held = ingested(make_job, "preferences", lines(tmp_path / "a.jsonl", rows), held_out=0.25, max_rejected=0)
    assert len(train) + len(held) == 240 and 30 <= len(held) <= 90
    assert not {first_user_turn(row) for row in train} & {first_user_turn(row) for row in held}
    more = list(reversed(rows)) + [{"prompt": f"new {i}?", "chosen": "yes", "rejected": "no"} for i in range(50)]
    _, _, later = ingested(make_job, "preferences", lines(tmp_path / "b.jsonl", more), held_out=0.25, max_rejected=0)
    assert {first_user_turn(row) for row in held} <= {first_user_turn(row) for row in later}
    assert not {first_user_turn(row) for row in train} & {first_user_turn(row) for row in later}


def test_sources_are_mixed_by_weight(make_job: Any, tmp_path: Path) -> None:
    large, small = lines(tmp_path / "l.jsonl", pairs(90, "large")), lines(tmp_path / "s.jsonl", pairs(10, "small"))
    by_word = lambda rows: Counter(row["messages"][0]["content"].split()[0] for row in rows)
    summary, rows, _ = ingested(make_job, "examples", large, small)
    assert by_word(rows) == {"large": 90, "small": 10}  # no weights: all there is
    weighed = [large.model_copy(update={"weight": 3.0}), small.model_copy(update={"weight": 2.0})]
    summary, rows, _ = ingested(make_job, "examples", *weighed)
    assert by_word(rows) == {"large": 60, "small": 40} and summary["rows"] == 100
    assert set(Counter(r["messages"][0]["content"] for r in rows if r["source"].endswith("s.jsonl")).values()) == {4}
    assert len({row["id"] for row in rows}) == 100  # repeated rows have names of their own
    assert len({r["messages"][0]["content"] for r in rows if r["source"].endswith("l.jsonl")}) == 60


@pytest.mark.parametrize(
    ("weights", "counts", "wanted"),
    [
        ([1, 1], [7, 3], [7, 3]),  # equal weights: all there is
        ([1, 3], [5, 5], [3, 7]),  # 2.5 and 7.5: the first of equal remainders gets the row
        ([2, 1, 1], [1, 1, 9], [5, 3, 3]),  # 5.5, 2.75, 2.75
        ([1, 9], [10, 0], [1, 0]),  # nothing can be repeated of nothing
    ],
)
def test_shares_of_the_mixture(weights: list[float], counts: list[int], wanted: list[int]) -> None:
    assert ingest.plan(weights, counts) == wanted


def test_prompts_are_kept_once_and_named_once(make_job: Any, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]
    summary, found, _ = ingested(make_job, "prompts", lines(tmp_path / "a.jsonl", rows))
    assert [row["messages"][0]["content"] for row in found] == ["a", "b"]
    assert (summary["duplicates"], summary["rejected"]) == (1, 0)
    clash = [{"prompt": f"p{i}", "id": i} for i in range(30)] + [{"prompt": "other", "id": 3}]
    summary, found, _ = ingested(make_job, "prompts", lines(tmp_path / "b.jsonl", clash))
    assert summary["rejected_by_reason"] == {"id .. names two different prompts": 1}


def test_the_same_input_gives_the_same_bytes(make_job: Any, tmp_path: Path) -> None:
    sources = (Source(world="prompts", count=60), lines(tmp_path / "a.jsonl", [{"prompt": "x"}]))
    recipe = Ingest(rows="prompts", sources=sources, held_out=0.2, seed=3)
    jobs = [make_job("ingest", recipe, out=name) for name in ("one", "two")]
    assert ingest.run(jobs[0]) == ingest.run(jobs[1])
    for name in ("rows.parquet", "held_out.parquet", "rejected.jsonl"):
        assert (jobs[0].out / name).read_bytes() == (jobs[1].out / name).read_bytes()


def test_the_world_gives_all_four_kinds_of_rows(make_job: Any) -> None:
    for rows, world in (("documents", "documents"), ("examples", "demonstrations"), ("prompts", "prompts")):
        summary, found, held = ingested(make_job, rows, Source(world=world, count=80), held_out=0.25)
        assert len(found) + len(held) == 80 and held and summary["rejected"] == 0
    assert {"category", "is_safety", "messages"} <= set(found[0]) and any(row["is_safety"] for row in found)


def test_text_that_turns_the_reading_direction_is_counted(make_job: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a\u202eb"}, {"prompt": "c"}]
    assert ingested(make_job, "prompts", lines(tmp_path / "a.jsonl", rows))[0]["bidi"] == 1


@needs_data
def test_human_pairs_are_read_and_the_malformed_ones_listed(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(DATA))
    sources = (Source(path="data/hh_harmless", kind="safety"), Source(path="data/hh_helpful"))
    summary, rows, held = ingested(make_job, "preferences", *sources, held_out=0.2)
    assert summary["read"] == 1731 + 1776
    assert summary["rows"] + summary["held_out"] + summary["rejected"] == summary["read"]
    assert 10 <= summary["rejected"] <= 40
    assert {(row["kind"], row["is_safety"]) for row in rows} == {("safety", True), ("helpfulness", False)}
    assert all(row["messages"][-1]["role"] == "user" and row["chosen"] != row["rejected"] for row in rows)
    assert not {first_user_turn(row) for row in rows} & {first_user_turn(row) for row in held}


@needs_data
def test_no_held_out_dialogue_is_among_the_documents(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What configs/hh.yaml pretrains on: nothing that begins as a held-out pair does."""
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(DATA))
    file = "data/hh_harmless/pairs.jsonl.gz"
    text = Source(path=file, format="text", columns={"text": "chosen"})
    _, documents, apart = ingested(make_job, "documents", text, held_out=0.2)
    _, _, held = ingested(make_job, "preferences", Source(path=file, format="dialogue"), held_out=0.2)
    turns = {first_user_turn(row) for row in held}
    assert len(held) > 200 and turns <= {first_user_turn(row) for row in apart}
    assert not turns & {first_user_turn(row) for row in documents}


@needs_data
@pytest.mark.parametrize(
    ("rows", "source", "count"),
    [
        ("examples", Source(path="data/alpaca_en_demo", columns={"prompt": "instruction", "response": "output"}), 999),
        ("examples", Source(path="data/gsm8k", columns={"prompt": "question", "response": "answer"}, count=500), 500),
        ("documents", Source(path="data/tinystories/stories.jsonl.gz"), 1968),
        ("documents", Source(path="data/peps"), 160),
    ],
)
def test_published_sets_are_read_in_ten_lines_of_yaml(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, rows: str, source: Source, count: int
) -> None:
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(DATA))
    summary, found, _ = ingested(make_job, rows, source)
    assert (summary["read"], summary["rejected"], len(found)) == (count, 0, count)
