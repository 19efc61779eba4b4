"""What of a Parquet file stays and what grows with its rows."""

from pathlib import Path

import pytest

from storage.growth import by_rows
from storage.rows import write_rows


def documents(path: Path, count: int) -> bytes:
    texts = [f"the {i * 7919 % 1009} birds of {i * 104729 % 4001} sang {i * 31 % 97} songs" for i in range(count)]
    write_rows(path, "Document", [{"id": str(i), "text": text, "source": "test"} for i, text in enumerate(texts)])
    return path.read_bytes()


@pytest.mark.parametrize("count", [16, 64, 200])
def test_parts_of_a_file_are_its_size(tmp_path: Path, count: int) -> None:
    data = documents(tmp_path / "rows.parquet", count)
    stays, grows = by_rows(data)
    assert stays + grows == pytest.approx(len(data)) and stays > 0 and grows > 0


def test_a_larger_file_is_forecast_by_a_smaller_one(tmp_path: Path) -> None:
    """Within 3 %; in proportion to the rows, 256 of them would be nearly twice as large as they are."""
    few, many = (documents(tmp_path / f"{count}.parquet", count) for count in (64, 256))
    stays, grows = by_rows(few)
    assert stays + 4 * grows == pytest.approx(len(many), rel=0.03)
    assert 4 * len(few) > 1.9 * len(many)


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_without_rows_to_compare_stays(tmp_path: Path, count: int) -> None:
    data = documents(tmp_path / "rows.parquet", count)
    assert by_rows(data) == (len(data), 0.0)
