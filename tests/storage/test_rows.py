"""Typed rows: exact round trip, same bytes for the same rows, errors that name the row and the column."""

import datetime
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import Corrupt, Refused
from storage.rows import SCHEMAS, count_rows, read_batches, read_rows, rows_at, write_rows

MESSAGES = [{"role": "user", "content": "Hi é"}]
PROMPT = {"messages": MESSAGES, "category": "rhyme", "is_safety": False, "source": "world"}
RESPONSE = {
    **PROMPT,
    "prompt_id": "p1",
    "k": 3,
    "text": "Hello",
    "token_ids": [1, 2, 3],
    "finish": "eos",
    "policy": "sft/v0-0123456789abcdef",
    "temperature": 0.7,
}
ROWS = {
    "Document": {"id": "d", "text": "t", "source": "s"},
    "Prompt": {"id": "p", **PROMPT},
    "Response": RESPONSE,
    "Scored": {**RESPONSE, "helpfulness": 0.1 + 0.2, "safety": None, "attributes": [3.0, 0.5], "rewards": "rm-1"},
    "Preference": {
        **PROMPT,
        "prompt_id": "p",
        "chosen": "a",
        "rejected": "b",
        "grade": 3,
        "chosen_safe": True,
        "rejected_safe": None,
        "kind": "helpfulness",
        "annotator": "gold",
        "agreement": 0.7,
    },
    "Ranking": {**PROMPT, "prompt_id": "p", "responses": ["a", "b"], "scores": [1.0, 2.0], "attributes": None},
    "Example": {"id": "e", **PROMPT, "weight": None},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_type_comes_back_exactly(tmp_path, name):
    path = tmp_path / "rows.parquet"
    assert write_rows(path, name, [ROWS[name]] * 3) == 3
    assert list(read_rows(path, name)) == [ROWS[name]] * 3
    metadata = pq.read_schema(path).metadata
    assert (metadata[b"roundhouse.rows"], metadata[b"roundhouse.version"]) == (name.encode(), b"1")


def test_the_same_rows_are_the_same_bytes(tmp_path):
    def made(folder):
        write_rows(tmp_path / folder, "Scored", ({**ROWS["Scored"], "k": i} for i in range(3000)), shard_rows=1300)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / folder).iterdir())]

    assert made("a") == made("b")
    assert len(made("c")) == 3
    assert [row["k"] for row in read_rows(tmp_path / "a")] == list(range(3000))
    assert count_rows(tmp_path / "a") == 3000


@pytest.mark.parametrize(("rows", "parts"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2)])
def test_shards_hold_exactly_their_rows(tmp_path, rows, parts):
    assert write_rows(tmp_path / "x", "Document", [ROWS["Document"]] * rows, shard_rows=2) == rows
    assert len(list((tmp_path / "x").iterdir())) == parts
    assert len(list(read_rows(tmp_path / "x", "Document"))) == rows


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Scored", {"helpfulness": float("nan")}, "row 2: helpfulness is nan"),
        ("Scored", {"safety": float("-inf")}, "row 2: safety is -inf"),
        ("Ranking", {"scores": [1.0, float("inf")]}, "row 2: scores"),
        ("Ranking", {"attributes": [[1.0], [float("nan")]]}, "row 2: attributes"),
        ("Prompt", {"category": None}, "row 2: missing category"),
        ("Prompt", {"categroy": "x"}, "row 2: unknown column categroy"),
        ("Response", {"k": "three"}, "rows 0 to 2"),
        ("Response", {"k": 2**40}, "rows 0 to 2"),
        ("Response", {"text": "\ud800"}, "rows 0 to 2"),
        ("Preference", {"grade": datetime.date(2020, 1, 1)}, "rows 0 to 2"),
    ],
)
def test_a_bad_row_is_named_and_no_file_is_left(tmp_path, name, change, message):
    path = tmp_path / "rows.parquet"
    with pytest.raises(Refused, match=message):
        write_rows(path, name, [ROWS[name], ROWS[name], {**ROWS[name], **change}])
    assert list(tmp_path.iterdir()) == []


def test_an_optional_column_may_be_left_out(tmp_path):
    row = {key: value for key, value in ROWS["Example"].items() if key != "weight"}
    write_rows(tmp_path / "x.parquet", "Example", [row])
    assert list(read_rows(tmp_path / "x.parquet", "Example")) == [{**row, "weight": None}]


def test_missing_columns_and_wrong_types_are_named(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(Refused, match="columns source are missing; a Document has id, text, source"):
        list(read_rows(tmp_path / "x.parquet", "Document"))
    pq.write_table(pa.table({"id": [1], "text": ["b"], "source": ["c"]}), tmp_path / "x.parquet")
    with pytest.raises(Refused, match="column id has type int64, want string"):
        list(read_rows(tmp_path / "x.parquet", "Document"))


def test_extra_columns_are_left_out(tmp_path):
    pq.write_table(pa.table({"more": [1], "id": ["a"], "text": ["b"], "source": ["c"]}), tmp_path / "x.parquet")
    assert list(read_rows(tmp_path / "x.parquet", "Document")) == [{"id": "a", "text": "b", "source": "c"}]


def test_only_the_columns_asked_for_are_read(tmp_path):
    write_rows(tmp_path / "x.parquet", "Document", [ROWS["Document"]])
    assert list(read_rows(tmp_path / "x.parquet", "Document", ("source", "id"))) == [{"id": "d", "source": "s"}]
    assert list(read_rows(tmp_path / "x.parquet", only=["text"])) == [{"text": "t"}]
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(Refused, match="columns source are missing"):  # the others must be there all the same
        list(read_rows(tmp_path / "x.parquet", "Document", ["id"]))


def test_batches_hold_the_rows_in_the_columns_of_the_type(tmp_path):
    """Whatever the file's order, width of text or optional columns: batches of many files can be put together."""
    write_rows(tmp_path / "part-00000.parquet", "Scored", [ROWS["Scored"]] * 3)
    other = pa.Table.from_pylist([ROWS["Scored"]], schema=SCHEMAS["Scored"]).drop_columns(["attributes"])
    other = other.set_column(0, "prompt_id", other.column(0).cast(pa.large_string())).select(other.column_names[::-1])
    pq.write_table(other, tmp_path / "part-00001.parquet")
    batches = list(read_batches(tmp_path, "Scored"))
    assert pa.Table.from_batches(batches).to_pylist() == [ROWS["Scored"]] * 3 + [{**ROWS["Scored"], "attributes": None}]
    assert all(batch.schema == SCHEMAS["Scored"] for batch in batches)


@pytest.mark.parametrize("places", [[], [0], [2499], [1023, 1024, 1025], [5, 1400, 2000, 2498], list(range(900, 1900))])
def test_rows_are_read_by_their_position(tmp_path, places):
    """Across files, row groups of 1024 rows and one larger than what is read at a time."""
    rows = [{"id": str(i), "text": "t", "source": "s"} for i in range(2500)]
    write_rows(tmp_path / "part-00000.parquet", "Document", rows[:1100])
    pq.write_table(pa.Table.from_pylist(rows[1100:]), tmp_path / "part-00001.parquet")
    assert list(rows_at(tmp_path, "Document", places)) == [rows[i] for i in places]


def test_text_that_is_not_utf8_is_our_error(tmp_path):
    text = pa.StringArray.from_buffers(1, pa.array([b"\xff"]).buffers()[1], pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"id": ["a"], "text": text, "source": ["c"]}), tmp_path / "x.parquet")
    for read in (read_rows, read_batches):
        with pytest.raises(Corrupt, match=r"x\.parquet: cannot be read as Parquet"):
            list(read(tmp_path / "x.parquet", "Document"))


def test_damaged_files_are_our_error(tmp_path):
    path = tmp_path / "x.parquet"
    write_rows(path, "Document", [ROWS["Document"]] * 100)
    data = path.read_bytes()
    for damaged in (b"", b"PAR1", data[:50], data[:-10], b"x" * 200, data[:8] + bytes(len(data) - 16) + data[-8:]):
        path.write_bytes(damaged)
        with pytest.raises((Corrupt, Refused)) as caught:
            list(read_rows(path, "Document"))
        assert str(path) in str(caught.value)
    with pytest.raises(Refused, match="no Parquet file"):
        list(read_rows(tmp_path / "nothing", "Document"))


def test_rows_stream_in_bounded_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "big.parquet"
    write_rows(path, "Document", ({"id": str(i), "text": "x" * 1000, "source": "s"} for i in range(20_000)))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path, "Document")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # the rows together are 20 MB
