"""engine.sources: what the usual readers let through is refused by name and place (RELIABILITY 2.5, rows 52-65)."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.recipes import Source
from engine import sources
from engine.errors import StageError
from engine.sources import Found, Refusal, parse, read


def found(tmp_path: Path, name: str, data: bytes, **more: Any) -> list[Found]:
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return list(read(Source(path=str(path), **more), "examples", 0))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"score": NaN}', "NaN is not finite"),
        (b'{"score": -Infinity}', "-Infinity is not finite"),
        (b'{"score": 1e999}', "not finite"),
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"m": [{"role": "user", "role": "x"}]}', "key 'role' twice"),
        (b'{"a": "\\ud800"}', "lone surrogate U+D800"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": "\u00e9"}'.encode("latin-1"), "not UTF-8 at byte 7"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        ('{"a": 1}'.encode("utf-16-le"), "not JSON"),
        (b'{"a": "x\\u0000y"}', "control character U+0000"),
        (b'{"a": "x\\u001by"}', "control character U+001B"),
        (b'{"a\\u0007": 1}', "control character U+0007"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
        (b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}", "nested deeper than 16"),
        (b"   ", "empty line"),
        (b"[1, 2]", "want a JSON object, found list"),
        (b"'a'", "not JSON"),
    ],
)
def test_a_harmful_line_is_refused(line: bytes, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(line)
    assert reason in str(caught.value)


def test_ordinary_text_passes() -> None:
    row = {"a": "tab\tline\nwindows\r\nend", "b": [1, 2.5, None, True], "c": {"d": "\u00e9\U0001f600 \u202e"}}
    assert parse(json.dumps(row).encode()) == row
    assert parse(json.dumps(row, ensure_ascii=False).encode()) == row


def test_places_are_file_and_line(tmp_path: Path) -> None:
    rows = found(tmp_path, "a.jsonl", b'{"a": 1}\n\n{"a": NaN}\n{"a": 2}')
    assert [row.place.rpartition("/")[2] for row in rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]
    assert [row.reason for row in rows] == ["", "empty line", "number NaN is not finite", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "a \u00e9", "n": 1}, {"prompt": "b", "n": 2}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name == "a.json":
        data = json.dumps(rows).encode()
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        data = (tmp_path / name).read_bytes()
    assert [row.row for row in found(tmp_path, name, data)] == rows
    assert [row.row for row in found(tmp_path, name, data, count=1)] == rows[:1]


def test_a_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / "in" / name).write_text(json.dumps({"file": name}) + "\n")
    (tmp_path / "in" / "LICENSE").write_text("not data")
    rows = list(read(Source(path=str(tmp_path / "in")), "examples", 0))
    assert [row.row for row in rows] == [{"file": "a.jsonl"}, {"file": "b.jsonl"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl.gz", b"", "no rows in it"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2', "a.jsonl:2: the file ends inside a row"),
        ("a.json", b"[]", "no rows in it"),
        ("a.json", b'{"a": 1}', "want a JSON array of objects, found dict"),
        ("a.json", b"[1, 2", "not JSON"),
        ("a.json", b'["\xff"]', "not UTF-8 at byte 2"),
        ("a.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("a.csv", b"a,b\n", "want a file ending in .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(StageError) as caught:
        found(tmp_path, name, data)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no such file"):
        list(read(Source(path=str(tmp_path / "none.jsonl")), "examples", 0))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-10])
    with pytest.raises(StageError, match=r"cut.jsonl.gz: damaged or cut-off gzip"):
        list(read(Source(path=str(path)), "examples", 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="no file ending in"):
        list(read(Source(path=str(tmp_path / "empty")), "examples", 0))


def test_a_huge_line_is_refused_without_being_kept(tmp_path: Path) -> None:
    huge = b'{"a": "' + b"x" * (3 << 20) + b'"}\n'
    rows = found(tmp_path, "a.jsonl", huge + b'{"a": 1}\n')
    assert [row.reason for row in rows] == ["line longer than 1048576 bytes", ""]
    assert rows[1].place.endswith("a.jsonl:2")


def test_bombs_are_refused_while_they_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BOMB_BYTES", 1 << 20)
    with pytest.raises(StageError, match="archive bomb"):
        found(tmp_path, "a.jsonl.gz", b'{"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n' * 200_000)
    pq.write_table(pa.table({"a": ["x" * 1000] * 20_000}), tmp_path / "b.parquet")
    with pytest.raises(StageError, match="archive bomb"):
        list(read(Source(path=str(tmp_path / "b.parquet")), "examples", 0))


def test_values_of_json_arrays_and_parquet_are_checked_too(tmp_path: Path) -> None:
    rows = found(tmp_path, "a.json", b'[{"a": NaN}, {"a": 1, "a": 2}, {"b": [{"c": 1, "c": 2}]}, 5, {"a": 1}]')
    reasons = ["number nan is not finite", "key 'a' twice", "key 'c' twice", "want a JSON object, found int", ""]
    assert [row.reason for row in rows] == reasons
    pq.write_table(pa.table({"a": [1.0, math.nan]}), tmp_path / "b.parquet")
    rows = list(read(Source(path=str(tmp_path / "b.parquet")), "examples", 0))
    assert [row.reason for row in rows] == ["", "number nan is not finite"]


def test_hub_sources_go_through_the_real_loader(tmp_path: Path) -> None:
    """datasets.load_dataset on a local folder: the same call as for a name on the hub."""
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["a", "b\x00"], "response": ["1", "2"]}), folder / "train.parquet")
    source = Source(hub=str(folder), revision="a" * 40, split="train")
    rows = list(read(source, "examples", 0))
    assert rows[0].row == {"prompt": "a", "response": "1"}
    assert rows[1].reason == "control character U+0000"
    with pytest.raises(StageError, match=r"hub source .* split test"):
        list(read(source.model_copy(update={"split": "test"}), "examples", 0))


def test_the_world_is_a_source() -> None:
    for kind in ("documents", "prompts", "demonstrations"):
        rows = list(read(Source(world=kind, count=7), "x", 3))
        assert len(rows) == 7 and rows[0].place == f"{kind}:1"
        assert (
            rows == list(read(Source(world=kind, count=7), "x", 3)) != list(read(Source(world=kind, count=7), "x", 4))
        )


def test_stories_are_made_from_given_texts(tmp_path: Path) -> None:
    words = ["dog", "cat", "ball", "tree", "house", "bird", "boat", "hat", "cake", "fish", "lake", "park"]
    texts = [f"The {a} saw the {b}. A {a} and a {b} sat by the {c}." for a in words for b in words for c in words[:3]]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [f.row for f in read(Source(world="stories-prompts", path=str(path), count=5), "prompts", 0)]
    assert len(rows) == 5 and rows[0] and rows[0]["messages"][0]["content"].startswith("words: ")
    with pytest.raises(ValueError, match="needs path"):
        Source(world="stories-prompts")
