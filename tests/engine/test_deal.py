"""engine.tables: files of rows whose bytes do not depend on how the rows came; rows dealt out to files."""

from pathlib import Path

import pyarrow as pa
import pytest

from engine import tables
from engine.tables import TEXT, WHOLE, deal, dealt, read_table, table_writer, write_table

COLUMNS = {"name": TEXT, "number": WHOLE}
ROWS = [{"name": f"p{i % 97}", "number": i} for i in range(2500)]


def test_rows_put_piece_by_piece_give_the_bytes_of_rows_written_at_once(tmp_path: Path) -> None:
    assert write_table(tmp_path / "whole.parquet", iter(ROWS), COLUMNS) == 2500
    with table_writer(tmp_path / "pieces.parquet", COLUMNS) as put:
        for first, last in ((0, 1), (1, 1), (1, 1023), (1023, 1025), (1025, 2500)):
            put(ROWS[first:last])
    assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert list(read_table(tmp_path / "pieces.parquet")) == ROWS


@pytest.mark.parametrize("held", [64, 1000, 10_000])
def test_rows_are_dealt_out_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """However few are held at a time; a file that gets nothing is empty."""
    monkeypatch.setattr(tables, "HELD", held)
    batches = pa.Table.from_pylist(ROWS).to_batches(max_chunksize=300)
    paths = [tmp_path / f"{i}.arrow" for i in range(5)]
    deal(batches, lambda name: int(name[1:]) % 4, "name", paths)
    assert [dealt(path) for path in paths] == [
        [row for row in ROWS if int(str(row["name"])[1:]) % 4 == part] for part in range(5)
    ]


def test_nothing_is_dealt_where_there_is_nothing(tmp_path: Path) -> None:
    deal([], lambda name: 0, "name", [tmp_path / "a.arrow"])
    assert dealt(tmp_path / "a.arrow") == []
