"""How the bytes of a Parquet file grow with its rows: much of a small file is its schema, which does not."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from storage.rows import BATCH, parquet_writer


def by_rows(data: bytes) -> tuple[float, float]:
    """(bytes that stay, bytes that grow in proportion to the rows) of a file, together its size.

    Measured by writing the first half of its rows and all of them again: what half of the rows adds is what rows cost.
    """
    table = pq.read_table(io.BytesIO(data))
    count, half = table.num_rows, table.num_rows // 2
    if half == 0:
        return float(len(data)), 0.0
    whole = written(table)
    share = min(1.0, max(0.0, (whole - written(table.slice(0, half))) / (count - half) * count / whole))
    return len(data) * (1 - share), len(data) * share


def written(table: pa.Table) -> int:
    """Bytes of a table as a file of rows."""
    out = io.BytesIO()
    with parquet_writer(out, table.schema) as writer:
        for first in range(0, table.num_rows, BATCH):
            writer.write_table(table.slice(first, BATCH))
    return out.tell()
