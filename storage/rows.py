"""Row types as typed, versioned Parquet: written deterministically, read in batches."""

from __future__ import annotations

import itertools
import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import Corrupt, Refused, unwritable

_VERSION = "1"
BATCH = 1024  # rows held in memory while reading or writing
_FINITE = frozenset(("helpfulness", "safety", "agreement", "weight", "scores", "attributes", "temperature"))

# Any in this file: a row is a dict whose values have the types of its schema, which pyarrow checks.
_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)]))
_PROMPT = {"messages": _MESSAGES, "category": pa.string(), "is_safety": pa.bool_()}
_RESPONSE = {
    "prompt_id": pa.string(),
    "k": pa.int32(),
    **_PROMPT,
    "text": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "finish": pa.string(),
    "policy": pa.string(),
    "temperature": pa.float64(),
    "source": pa.string(),
}


def _schema(name: str, columns: Mapping[str, pa.DataType], optional: tuple[str, ...] = ()) -> pa.Schema:
    fields = [pa.field(column, kind, nullable=column in optional) for column, kind in columns.items()]
    return pa.schema(fields, metadata={"roundhouse.rows": name, "roundhouse.version": _VERSION})


Document = _schema("Document", {"id": pa.string(), "text": pa.string(), "source": pa.string()})
Prompt = _schema("Prompt", {"id": pa.string(), **_PROMPT, "source": pa.string()})
Response = _schema("Response", _RESPONSE)
Scored = _schema(
    "Scored",
    {
        **_RESPONSE,
        "helpfulness": pa.float64(),
        "safety": pa.float64(),
        "attributes": pa.list_(pa.float64()),  # outputs of a reward model that has several
        "rewards": pa.string(),
    },
    optional=("helpfulness", "safety", "attributes"),
)
Preference = _schema(
    "Preference",
    {
        "prompt_id": pa.string(),
        **_PROMPT,
        "chosen": pa.string(),
        "rejected": pa.string(),
        "grade": pa.int8(),  # 0 negligibly .. 3 significantly better
        "chosen_safe": pa.bool_(),
        "rejected_safe": pa.bool_(),
        "kind": pa.string(),
        "annotator": pa.string(),
        "agreement": pa.float64(),
        "source": pa.string(),
    },
    optional=("grade", "chosen_safe", "rejected_safe", "agreement"),
)
Ranking = _schema(
    "Ranking",
    {
        "prompt_id": pa.string(),
        **_PROMPT,
        "responses": pa.list_(pa.string()),
        "scores": pa.list_(pa.float64()),
        "attributes": pa.list_(pa.list_(pa.float64())),
        "source": pa.string(),
    },
    optional=("scores", "attributes"),
)
Example = _schema(
    "Example",
    {"id": pa.string(), **_PROMPT, "source": pa.string(), "weight": pa.float64()},
    optional=("weight",),
)

SCHEMAS: dict[str, pa.Schema] = {
    "Document": Document,
    "Prompt": Prompt,
    "Response": Response,
    "Scored": Scored,
    "Preference": Preference,
    "Ranking": Ranking,
    "Example": Example,
}


def write_rows(
    path: Path | str, schema_name: str, rows: Iterable[Mapping[str, Any]], *, shard_rows: int | None = None
) -> int:
    """Write rows as Parquet and return how many; the same rows give the same bytes.

    Args:
        path: a file, or with `shard_rows` a folder of part-00000.parquet, part-00001.parquet, ...
        shard_rows: rows a part; memory holds 1024 rows at a time either way.

    Raises:
        Refused: an unknown or missing column, a wrong type, or NaN or infinity where a number counts;
            the message names the row (from 0) and the column.
    """
    schema = _named(schema_name)
    stream, path = iter(rows), Path(path)
    if shard_rows is None:
        return _write_file(path, schema, stream, 0, None)
    if shard_rows < 1:
        raise ValueError(f"shard_rows {shard_rows}: want at least 1")
    count = 0
    for part in itertools.count():
        written = _write_file(path / f"part-{part:05d}.parquet", schema, stream, count, shard_rows)
        count += written
        if written == 0 and part > 0:
            (path / f"part-{part:05d}.parquet").unlink()
        if written < shard_rows:
            return count
    raise AssertionError("unreachable")


def _named(schema_name: str) -> pa.Schema:
    if schema_name not in SCHEMAS:
        raise Refused(f"row type {schema_name!r}: want one of {', '.join(SCHEMAS)}")
    return SCHEMAS[schema_name]


def _write_file(path: Path, schema: pa.Schema, rows: Iterator[Mapping[str, Any]], first: int, limit: int | None) -> int:
    temp = path.parent / f".{path.name}.part"
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(temp, schema) as writer:
            while limit is None or count < limit:
                take = BATCH if limit is None else min(BATCH, limit - count)
                batch = list(itertools.islice(rows, take))
                if not batch:
                    break
                writer.write_table(_table(schema, batch, first + count))
                count += len(batch)
        os.replace(temp, path)
    except OSError as err:
        raise unwritable(err, path) from err
    finally:
        temp.unlink(missing_ok=True)
    return count


def _table(schema: pa.Schema, batch: list[Mapping[str, Any]], first: int) -> pa.Table:
    wanted = frozenset(schema.names)
    optional = frozenset(field.name for field in schema if field.nullable)
    name = schema.metadata[b"roundhouse.rows"].decode()
    for index, row in enumerate(batch, first):
        if unknown := row.keys() - wanted:
            raise Refused(f"{name} row {index}: unknown column {', '.join(sorted(map(str, unknown)))}")
        if missing := wanted - optional - {column for column, value in row.items() if value is not None}:
            raise Refused(f"{name} row {index}: missing {', '.join(sorted(missing))}")
        for column in _FINITE & row.keys():
            if not _finite(row[column]):
                raise Refused(f"{name} row {index}: {column} is {row[column]}, want a finite number")
    try:
        return pa.Table.from_pylist([dict(row) for row in batch], schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as err:
        raise Refused(f"{name} rows {first} to {first + len(batch) - 1}: {str(err)[:200]}") from None


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def parts(path: Path | str) -> list[Path]:
    """Return the Parquet files at `path`: itself, or those of a folder in order of name."""
    path = Path(path)
    found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not found or not all(file.is_file() for file in found):
        raise Refused(f"{path}: no Parquet file there")
    return found


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """The form in which every file of rows is written."""
    return pq.ParquetWriter(sink, schema, compression="zstd", write_statistics=True, version="2.6")


def read_rows(
    path: Path | str, schema_name: str | None = None, only: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file or folder in order, a batch in memory at a time.

    With `schema_name` the columns of that type are required: missing ones are an error that names them,
    others are left out. With `only`, of those no more than these are read.

    Raises:
        Refused: not Parquet, or a required column is missing or has another type. Corrupt: unreadable data.
    """
    for file in parts(path):
        with _named_errors(file):
            for batch in _batches(file, schema_name, only):
                yield from batch.to_pylist()


def rows_at(path: Path | str, schema_name: str, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `read_rows` at the given ascending positions; what lies between them is not read."""
    first = 0
    for file in parts(path):
        with _named_errors(file), pq.ParquetFile(file) as source:
            columns = _columns(file, source.schema_arrow, _named(schema_name))
            for group in range(source.num_row_groups):
                place, first = first, first + source.metadata.row_group(group).num_rows
                if bisect_left(places, place) == bisect_left(places, first):
                    continue
                for batch in source.iter_batches(batch_size=BATCH, row_groups=[group], columns=columns):
                    inside = places[bisect_left(places, place) : bisect_left(places, place + len(batch))]
                    yield from batch.take(pa.array([i - place for i in inside], pa.int64())).to_pylist()
                    place += len(batch)


def read_batches(path: Path | str, schema_name: str) -> Iterator[pa.RecordBatch]:
    """Yield what `read_rows` yields as Arrow batches that have the type's very columns: all of them, in its order."""
    schema = _named(schema_name)
    for file in parts(path):
        with _named_errors(file):
            for batch in _batches(file, schema_name, None):
                names = batch.schema.names
                columns = [
                    batch.column(field.name).cast(field.type)
                    if field.name in names
                    else pa.nulls(len(batch), field.type)
                    for field in schema
                ]
                found = pa.record_batch(columns, schema=schema)
                found.validate(full=True)  # also that text is UTF-8, as `read_rows` finds out
                yield found


def _batches(file: Path, schema_name: str | None, only: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as source:
        columns = None if schema_name is None else _columns(file, source.schema_arrow, _named(schema_name))
        if only is not None:
            columns = [name for name in columns or source.schema_arrow.names if name in only]
        yield from source.iter_batches(batch_size=BATCH, columns=columns)


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """What goes wrong with a file's data becomes `Corrupt` with its path."""
    try:
        yield
    except Refused:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as err:  # also text that is not UTF-8
        raise Corrupt(f"{file}: cannot be read as Parquet: {str(err)[:200]}") from None
    except OSError as err:
        raise Corrupt(f"{file}: cannot be read: {str(err)[:200]}") from None


def count_rows(path: Path | str) -> int:
    """Return the number of rows of a file or folder, from the Parquet footers."""
    try:
        return sum(pq.read_metadata(file).num_rows for file in parts(path))
    except (pa.ArrowException, OSError) as err:
        raise Corrupt(f"{path}: cannot be read as Parquet: {str(err)[:200]}") from None


def _columns(file: Path, found: pa.Schema, wanted: pa.Schema) -> list[str]:
    name = wanted.metadata[b"roundhouse.rows"].decode()
    if missing := [field.name for field in wanted if field.name not in found.names and not field.nullable]:
        raise Refused(f"{file}: columns {', '.join(missing)} are missing; a {name} has {', '.join(wanted.names)}")
    for field in wanted:
        if field.name in found.names and not _same(found.field(field.name).type, field.type):
            kind = found.field(field.name).type
            raise Refused(f"{file}: column {field.name} has type {kind}, want {field.type}")
    return [field.name for field in wanted if field.name in found.names]


def _same(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether two types hold the same values; which inner fields may be null is not asked."""
    if pa.types.is_list(wanted) or pa.types.is_large_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return is_list and _same(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        names = [field.name for field in wanted]
        if not pa.types.is_struct(found) or sorted(names) != sorted(field.name for field in found):
            return False
        return all(_same(found.field(name).type, wanted.field(name).type) for name in names)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(found == wanted)
