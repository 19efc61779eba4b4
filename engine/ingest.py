"""Outside data -> typed rows: validated, mixed by weight, split by the hash of the normalised first user turn."""

import hashlib
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.recipes import Ingest, Source
from engine.errors import StageError
from engine.formats import Typed, has_bidi, is_held_out, typed
from engine.job import Job
from engine.sources import Found, Refusal, read
from storage.redact import redact
from storage.rows import read_rows, write_rows

SCHEMAS = {
    "documents": "Document",
    "examples": "Example",
    "prompts": "Prompt",
    "preferences": "Preference",
    "rankings": "Ranking",
}
APART = "apart:"  # the stream of the split for the judge models: independent of the held-out one
SHOWN = 3  # refused rows named in an error


@dataclass
class Tally:
    """What became of the rows of all sources."""

    seen: int = 0
    duplicates: int = 0
    bidi: int = 0
    rejected: list[Found] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)  # digests of the prompts so far
    names: set[str] = field(default_factory=set)
    train: list[int] = field(default_factory=list)  # rows of each source in the training part


def run(job: Job) -> dict[str, Any]:
    """Read every source, refuse what is malformed, and write rows.parquet and held_out.parquet.

    Raises:
        StageError: a source without rows, more refused rows than `max_rejected`, nothing left to train on.
    """
    recipe: Ingest = job.recipe
    schema, tally = SCHEMAS[recipe.rows], Tally()
    labels = _labels(recipe.sources)
    with tempfile.TemporaryDirectory() as scratch:
        spools = [Path(scratch) / f"{i}.parquet" for i in range(len(labels))]
        for i, (source, label) in enumerate(zip(recipe.sources, labels)):
            write_rows(spools[i], schema, _good(source, label, recipe, tally))
            job.progress(i + 1, len(labels), "source")
        _write_rejected(job.out / "rejected.jsonl", tally.rejected)
        _check(recipe, tally)
        shares = plan([source.weight for source in recipe.sources], tally.train)
        count = write_rows(job.out / "rows.parquet", schema, _mix(spools, shares, tally.train, recipe))
        held = 0
        if recipe.held_out > 0:
            rows = (row for spool in spools for row in read_rows(spool, schema) if is_held_out(row, recipe.held_out))
            held = write_rows(job.out / "held_out.parquet", schema, rows)
    kinds = Counter(kind_of(found.reason) for found in tally.rejected)
    return {
        "rows": count,
        "held_out": held,
        "read": tally.seen,
        "rejected": len(tally.rejected),
        "rejected_by_reason": dict(sorted(kinds.items())),
        "duplicates": tally.duplicates,
        "bidi": tally.bidi,
        "sources": dict(zip(labels, shares)),
    }


def plan(weights: Sequence[float], counts: Sequence[int]) -> list[int]:
    """Rows to take of each source. Equal weights take all there is; others share the same total by weight.

    Largest remainders get the rows that rounding leaves over.
    """
    if len(set(weights)) == 1:
        return list(counts)
    total = sum(counts)
    exact = [total * weight / sum(weights) for weight in weights]
    taken = [int(share) for share in exact]
    for i in sorted(range(len(exact)), key=lambda i: (taken[i] - exact[i], i))[: total - sum(taken)]:
        taken[i] += 1
    return [share if count else 0 for share, count in zip(taken, counts)]


def kind_of(reason: str) -> str:
    """A reason without its particulars, to count by."""
    return re.sub(r"'[^']*'|\d+|U\+\w+", "..", reason.split("; ")[0])


def _good(source: Source, label: str, recipe: Ingest, tally: Tally) -> Iterator[Typed]:
    """The source's usable rows; the others go to the tally."""
    seen = train = 0
    for found in read(source, recipe.rows, recipe.seed):
        seen += 1
        if found.row is None:
            tally.rejected.append(found)
            continue
        try:
            row = typed(found.row, source, recipe.rows, label, recipe.max_chars)
            if recipe.rows == "prompts" and not _is_new(row, tally):
                continue
        except Refusal as error:
            tally.rejected.append(Found(found.place, None, str(error)))
            continue
        held_out = is_held_out(row, recipe.held_out)
        if not held_out and is_held_out(row, recipe.apart, APART) != (recipe.part == "apart"):
            continue
        tally.bidi += has_bidi(row)
        train += not held_out
        yield row
    tally.seen += seen
    tally.train.append(train)


def _is_new(row: Typed, tally: Tally) -> bool:
    """Prompts are kept once: their names key the random streams of all that is sampled from them."""
    text = json.dumps(row["messages"], sort_keys=True)
    key = hashlib.sha256(text.encode()).digest()[:16]
    if key in tally.keys:
        tally.duplicates += 1
        return False
    if row["id"] in tally.names:
        raise Refusal(f"id {row['id'][:40]!r} names two different prompts")
    tally.keys.add(key)
    tally.names.add(row["id"])
    return True


def _check(recipe: Ingest, tally: Tally) -> None:
    if len(tally.rejected) > recipe.max_rejected * tally.seen:
        shown = "; ".join(f"{f.place}: {f.reason}" for f in tally.rejected[:SHOWN])
        raise StageError(
            f"{len(tally.rejected)} of {tally.seen} rows are malformed, max_rejected is {recipe.max_rejected:g}: {shown}"
        )
    if sum(tally.train) == 0:
        raise StageError(
            f"no {recipe.rows} left to train on: {tally.seen} read, {len(tally.rejected)} refused, the rest held out"
        )


def _mix(spools: Sequence[Path], shares: Sequence[int], counts: Sequence[int], recipe: Ingest) -> Iterator[Typed]:
    """The training part: of each source so many rows, drawn evenly if fewer than it has, repeated if more."""
    for i, (spool, share, count) in enumerate(zip(spools, shares, counts)):
        times, rest = divmod(share, count) if count else (0, 0)
        more = set(random.Random(f"{recipe.seed}:{i}").sample(range(count), rest))
        for turn in range(times + bool(rest)):
            train = (row for row in read_rows(spool, SCHEMAS[recipe.rows]) if not is_held_out(row, recipe.held_out))
            for number, row in enumerate(train):
                if turn < times or number in more:
                    yield row if turn == 0 or "id" not in row else {**row, "id": f"{row['id']}#{turn + 1}"}


def _labels(sources: Iterable[Source]) -> list[str]:
    """A name for each source, different for each."""
    names = [str(source.world or source.path or source.hub) for source in sources]
    return [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]


def _write_rejected(path: Path, rejected: Iterable[Found]) -> None:
    """Where each row stands and why it was refused; the reason quotes the row, which may hold a secret of the environment."""
    with path.open("w", encoding="utf-8") as out:
        for found in rejected:
            out.write(json.dumps({"place": found.place, "reason": redact(found.reason)}, ensure_ascii=True) + "\n")
