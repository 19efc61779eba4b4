"""Parquet files that hold more than one of storage's row types: a type's columns and some of our own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.rows import SCHEMAS

BATCH = 1024  # rows in memory while writing
TEXT, WHOLE, NUMBER, TRUTH = pa.string(), pa.int32(), pa.float64(), pa.bool_()


def write_table(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, pa.DataType], base: str = ""
) -> int:
    """Write rows with the columns of row type `base` (if any) and then `columns`; returns how many.

    The same rows give the same bytes.
    """
    fields = list(SCHEMAS[base]) if base else []
    schema = pa.schema([*fields, *(pa.field(name, kind) for name, kind in columns.items())])
    stream, count = iter(rows), 0
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6") as writer:
        while batch := list(islice(stream, BATCH)):
            writer.write_table(pa.Table.from_pylist([dict(row) for row in batch], schema=schema))
            count += len(batch)
    return count


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file, a batch in memory at a time."""
    with pq.ParquetFile(path) as source:
        for batch in source.iter_batches(batch_size=BATCH):
            yield from batch.to_pylist()


def scatter(
    rows: Iterable[Mapping[str, Any]], part_of: Callable[[Mapping[str, Any]], int], paths: Sequence[Path], base: str
) -> None:
    """Deal rows out to files by `part_of`, in order; about as many rows as one file holds at a time are in memory."""
    held: list[list[dict[str, Any]]] = [[] for _ in paths]
    most = max(64, BATCH // max(1, len(paths) // 4))
    with ExitStack() as stack:
        schema = SCHEMAS[base]
        writers = [
            stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd", version="2.6")) for path in paths
        ]

        def flush(part: int) -> None:
            writers[part].write_table(pa.Table.from_pylist(held[part], schema=schema))
            held[part] = []

        for row in rows:
            part = part_of(row)
            held[part].append(dict(row))
            if len(held[part]) == most:
                flush(part)
        for part in range(len(paths)):
            flush(part)
