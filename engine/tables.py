"""Parquet files that hold more than one of storage's row types: a type's columns and some of our own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.rows import SCHEMAS, parquet_writer

Rows = Iterable[Mapping[str, Any]]
BATCH = 1024  # rows in memory while writing
HELD = 4096  # rows in memory while dealing
TEXT, WHOLE, NUMBER, TRUTH = pa.string(), pa.int32(), pa.float64(), pa.bool_()


def write_table(path: Path, rows: Rows, columns: Mapping[str, pa.DataType], base: str = "") -> int:
    """Write rows with the columns of row type `base` (if any) and then `columns`; returns how many.

    The same rows give the same bytes.
    """
    stream, count = iter(rows), 0
    with table_writer(path, columns, base) as put:
        while batch := list(islice(stream, BATCH)):
            put(batch)
            count += len(batch)
    return count


@contextmanager
def table_writer(path: Path, columns: Mapping[str, pa.DataType], base: str = "") -> Iterator[Callable[[Rows], None]]:
    """Gives a function that appends rows to the file of `write_table`; the bytes do not depend on how they are parted."""
    fields = list(SCHEMAS[base]) if base else []
    schema = pa.schema([*fields, *(pa.field(name, kind) for name, kind in columns.items())])
    held: list[dict[str, Any]] = []
    with parquet_writer(path, schema) as writer:

        def put(rows: Rows) -> None:
            held.extend(dict(row) for row in rows)
            while len(held) >= BATCH:
                writer.write_table(pa.Table.from_pylist(held[:BATCH], schema=schema))
                del held[:BATCH]

        yield put
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema=schema))


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file, a batch in memory at a time."""
    with pq.ParquetFile(path) as source:
        for batch in source.iter_batches(batch_size=BATCH):
            yield from batch.to_pylist()


def deal(batches: Iterable[pa.RecordBatch], part_of: Callable[[str], int], column: str, paths: Sequence[Path]) -> None:
    """Deal the rows of batches of one schema out to files by `part_of` their `column`, in order; `dealt` reads such a file.

    Batches stay as they are, never rows in Python: however many the files, a row costs the same.
    """
    held: list[pa.RecordBatch] = []
    with ExitStack() as stack:
        writers: list[pa.RecordBatchFileWriter] = []

        def flush() -> None:
            table = pa.Table.from_batches(held).combine_chunks()
            if not writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                opened = (pa.ipc.new_stream(path, table.schema, options=options) for path in paths)
                writers.extend(stack.enter_context(writer) for writer in opened)
            places = np.array([part_of(value) for value in table.column(column).to_pylist()])
            order = np.argsort(places, kind="stable")
            table, edges = table.take(order), np.searchsorted(places[order], np.arange(len(paths) + 1))
            for part, (first, last) in enumerate(pairwise(edges)):
                if last > first:
                    writers[part].write_table(table.slice(first, last - first))
            held.clear()

        for batch in batches:
            held.append(batch)
            if sum(one.num_rows for one in held) >= HELD:
                flush()
        if held:
            flush()


def dealt(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `deal` wrote; none where it had nothing to write."""
    if not path.exists():
        return []
    with pa.ipc.open_stream(path) as source:
        return list(source.read_all().combine_chunks().to_pylist())
