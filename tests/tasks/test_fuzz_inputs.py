"""Malformed configs and rows: our own error in one line or a counted rejection, quickly, whatever the bytes are."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.reliability.mutate import mutated_bytes, mutated_tree
from configs.check import check
from configs.load import find
from configs.parse import ConfigError, parse
from configs.recipes import Source
from engine.errors import StageError
from engine.formats import typed
from engine.sources import Refusal, read
from engine.sources import parse as parse_row

COUNTS = [pytest.param(200, marks=pytest.mark.slow_short), 10_000]
pytestmark = pytest.mark.slow

PREFERENCE = {
    "prompt": "Hello?",
    "chosen": "Good day.",
    "rejected": "What",
    "margin": 0.5,
    "is_safety": False,
    "tags": ["a", 1],
}


def try_each(mutants: Iterator[bytes], act: Callable[[bytes], object], errors: tuple[type[Exception], ...]) -> int:
    """Act on each; returns how many were refused. Anything but `errors` is a failure, so is a long wait or message."""
    refused = 0
    for data in mutants:
        began = time.process_time()
        try:
            act(data)
        except errors as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, data
        assert time.process_time() - began < 2, data
    return refused


@pytest.mark.parametrize("count", COUNTS)
def test_configs(count: int, tally) -> None:
    good = find("micro").read_bytes()
    tree, draw = yaml.safe_load(good), random.Random(21)

    def mutants() -> Iterator[bytes]:
        for number in range(count):
            changed = mutated_tree(tree, draw)
            text = json.dumps(changed).encode(errors="replace")
            yield mutated_bytes(good, draw) if number % 2 else text

    refused = try_each(mutants(), lambda data: check(parse(data, "bad.yaml"), "bad.yaml"), (ConfigError,))
    tally("malformed configs", count, f"{refused} refused, the others still made sense")
    assert refused > 0.5 * count


@pytest.mark.parametrize("count", COUNTS)
def test_json_rows(count: int, tally) -> None:
    good, draw = json.dumps(PREFERENCE).encode(), random.Random(22)
    source = Source(path="bad.jsonl")

    def mutants() -> Iterator[bytes]:
        for number in range(count):
            changed = json.dumps(mutated_tree(PREFERENCE, draw), ensure_ascii=False).encode(errors="surrogatepass")
            yield mutated_bytes(good, draw) if number % 2 else changed

    def act(line: bytes) -> None:
        typed(parse_row(line), source, "preferences", "bad", 10_000)

    refused = try_each(mutants(), act, (Refusal,))
    tally("malformed JSON rows", count, f"{refused} refused, the others still made sense")
    assert refused > 0.5 * count


@pytest.mark.parametrize("count", COUNTS)
def test_parquet_sources(count: int, tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(tmp_path))
    path, draw = tmp_path / "bad.parquet", random.Random(23)
    pq.write_table(pa.Table.from_pylist([PREFERENCE | {"tags": ["a"]}] * 5), path)
    good, source = path.read_bytes(), Source(path="bad.parquet")

    def mutants() -> Iterator[bytes]:
        for number in range(count):
            data = mutated_bytes(good, draw)
            yield data[:-4] + b"PAR1" if number % 2 and len(data) > 8 else data

    def act(data: bytes) -> None:
        path.write_bytes(data)
        for found in read(source, "preferences", 1):
            assert (found.row is None) == bool(found.reason)

    refused = try_each(mutants(), act, (StageError,))
    tally("malformed Parquet sources", count, f"{refused} refused, the others still made sense")
    assert refused > 0.3 * count
