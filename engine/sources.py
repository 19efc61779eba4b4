"""Where rows come from: files, the hub and the built-in world, each read as a stream of raw rows or refusals.

One strict reader for everything from outside. It never lets through what the usual readers do: NaN, duplicate keys, another
encoding, control characters, nesting or numbers without bound, archives that unpack to a hundred times their size.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

import world
from configs.load import locate
from configs.parse import ConfigError
from configs.recipes import Source
from engine.errors import StageError
from world import stories

Raw = dict[str, Any]  # a row as found: any JSON values
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
MAX_LINE = 1 << 20  # bytes of one JSON line
MAX_JSON = 256 << 20  # bytes of a .json file, which is read whole
MAX_DEPTH = 16
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200  # unpacked bytes from which an archive this many times smaller is refused
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Refusal(ValueError):
    """Why one row cannot be used; the place is added by the reader."""


@dataclass(frozen=True)
class Found:
    """A row, or the reason why there is none. `place` is file:line (or file:row), relative to the data root."""

    place: str
    row: Raw | None
    reason: str = ""


def read(source: Source, rows: str, seed: int) -> Iterator[Found]:
    """All rows of a source in order, at most `source.count` good ones.

    Raises:
        StageError: the source cannot be read at all: missing, empty, cut off, no known format, the hub out of reach.
    """
    if source.world:
        yield from _world(source, rows, seed)
        return
    good, seen = 0, 0
    for found in _hub(source) if source.hub else _files(source):
        seen += 1
        good += found.row is not None
        yield found
        if source.count and good == source.count:
            return
    if seen == 0:
        raise StageError(f"{source.path or source.hub}: no rows in it")


def check(value: Any, depth: int = 0) -> None:
    """Refuse values that would do harm later: not finite, nested too deep, control characters, lone surrogates."""
    if isinstance(value, Refusal):  # left by the reader of a .json file
        raise value
    if depth > MAX_DEPTH:
        raise Refusal(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        if found := _SURROGATE.search(value):
            raise Refusal(f"lone surrogate U+{ord(found[0]):04X}")
        if found := _CONTROL.search(value.replace("\r\n", "\n")):
            raise Refusal(f"control character U+{ord(found[0]):04X}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refusal(f"number {value} is not finite")
    elif isinstance(value, dict):
        for key, item in value.items():
            check(key, depth + 1)
            check(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check(item, depth + 1)


def parse(line: bytes) -> Raw:
    """One JSON object from strict UTF-8.

    Raises:
        Refusal: one short reason.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise Refusal("byte order mark: save the file as plain UTF-8")
    if not text.strip():
        raise Refusal("empty line")
    try:
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_pairs)
    except RecursionError:
        raise Refusal(f"nested deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise Refusal(f"not JSON: {error.msg} at character {error.pos}") from None
    except Refusal:
        raise
    except ValueError:
        raise Refusal("a number with too many digits") from None
    return _object(value)


def _object(value: Any) -> Raw:
    check(value)
    if not isinstance(value, dict):
        raise Refusal(f"want a JSON object, found {type(value).__name__}")
    return value


def _constant(name: str) -> float:
    raise Refusal(f"number {name} is not finite")


def _pairs(pairs: list[tuple[str, Any]]) -> Raw:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Refusal(f"key {twice[:40]!r} twice")
    return row


def _world(source: Source, rows: str, seed: int) -> Iterator[Found]:
    count = source.count or 1000
    if source.world and source.world.startswith("stories-"):
        texts = [str(found.row.get("text", "")) for found in _files(source) if found.row]
        make = stories.prompts if source.world == "stories-prompts" else stories.demonstrations
        made: Iterator[Raw] = make(texts, seed, count)
    elif source.world == "documents":
        made = world.documents(seed, count, source.domain)
    elif source.world == "demonstrations":
        made = world.demonstrations(seed, count)
    else:
        made = world.prompts(seed, count)
    for number, row in enumerate(made, start=1):
        yield Found(f"{source.world}:{number}", row)


def _hub(source: Source) -> Iterator[Found]:
    import datasets  # only here: importing it takes a second

    try:
        rows = datasets.load_dataset(source.hub, revision=source.revision, split=source.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield _checked(f"{source.hub}/{source.split}:{number}", row)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise StageError(
            f"hub source {source.hub} split {source.split}: {reason}; check the name, the revision and the network"
        ) from error


def _files(source: Source) -> Iterator[Found]:
    try:
        root = locate(str(source.path))
    except ConfigError as error:
        raise StageError(str(error)) from error
    files = sorted(p for p in root.rglob("*") if p.name.endswith(SUFFIXES)) if root.is_dir() else [root]
    if not files:
        raise StageError(f"{source.path}: no file ending in {', '.join(SUFFIXES)} in that folder")
    for file in files:
        place = f"{source.path}/{file.relative_to(root).as_posix()}" if root.is_dir() else str(source.path)
        if file.stat().st_size == 0:
            raise StageError(f"{place}: the file is empty")
        if file.name.endswith(".parquet"):
            yield from _parquet(file, place)
        elif file.name.endswith(".json"):
            yield from _json(file, place)
        elif file.name.endswith((".jsonl", ".jsonl.gz")):
            yield from _lines(file, place)
        else:
            raise StageError(f"{place}: want a file ending in {', '.join(SUFFIXES)}")


def _lines(file: Path, place: str) -> Iterator[Found]:
    packed = file.stat().st_size
    with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as stream:
        unpacked = 0
        try:
            for number, line in enumerate(_split(stream), start=1):
                unpacked += len(line)
                _check_bomb(place, unpacked, packed)
                if len(line) > MAX_LINE:
                    yield Found(f"{place}:{number}", None, f"line longer than {MAX_LINE} bytes")
                    continue
                try:
                    yield Found(f"{place}:{number}", parse(line))
                except Refusal as error:
                    if not line.endswith(b"\n") and line.strip() and "not JSON" in str(error):
                        raise StageError(f"{place}:{number}: the file ends inside a row; it was cut off") from None
                    yield Found(f"{place}:{number}", None, str(error))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise StageError(f"{place}: damaged or cut-off gzip file: {error}") from error


def _split(stream: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Lines of at most MAX_LINE + 1 bytes; the rest of a longer one is read and dropped, piece by piece."""
    while line := stream.readline(MAX_LINE + 1):
        yield line
        if len(line) > MAX_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass


def _json(file: Path, place: str) -> Iterator[Found]:
    if file.stat().st_size > MAX_JSON:
        raise StageError(
            f"{place}: {file.stat().st_size} bytes in one JSON value, at most {MAX_JSON}; write it as .jsonl"
        )
    try:
        text = file.read_bytes().decode("utf-8")
        values = json.loads(text, parse_constant=lambda name: math.nan, object_pairs_hook=_marked)
    except UnicodeDecodeError as error:
        raise StageError(f"{place}: not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise StageError(f"{place}: not JSON: {str(error)[:200]}") from error
    if not isinstance(values, list):
        raise StageError(f"{place}: want a JSON array of objects, found {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        yield _checked(f"{place}:{number}", value)


def _marked(pairs: list[tuple[str, Any]]) -> Any:
    """A dict, or for one with a key twice the refusal, which is then found as a value of the wrong kind."""
    try:
        return _pairs(pairs)
    except Refusal as error:
        return error


def _parquet(file: Path, place: str) -> Iterator[Found]:
    packed, unpacked, number = file.stat().st_size, 0, 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                unpacked += batch.nbytes
                _check_bomb(place, unpacked, packed)
                for row in batch.to_pylist():
                    number += 1
                    yield _checked(f"{place}:{number}", row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # pyarrow tells damage as an OSError too
        reason = " ".join(str(error).split())[:200]
        raise StageError(f"{place}: cannot be read as Parquet: {reason}") from error


def _check_bomb(place: str, unpacked: int, packed: int) -> None:
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise StageError(f"{place}: {packed} bytes unpack to more than {unpacked}; refused as an archive bomb")


def _checked(place: str, value: Any) -> Found:
    try:
        return Found(place, _object(value))
    except Refusal as error:
        return Found(place, None, str(error))
