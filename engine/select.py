"""Scored responses of all rounds -> training rows: the piecewise rule orders them, the method chooses."""

import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import methods
from configs.recipes import Select
from engine.drawing import share_of
from engine.errors import StageError
from engine.job import Job
from engine.piecewise import combine
from engine.scale import Scale
from engine.tables import NUMBER, TEXT, TRUTH, WHOLE, deal, dealt, table_writer
from storage.rows import count_rows, parts, read_batches, read_rows, write_rows

Row = dict[str, Any]
Audit = Callable[[Iterable[Row]], None]
Choice = Callable[[Sequence[Row], random.Random], list[Row]]  # one prompt's candidates -> training rows
# Candidates held in memory at once: prompts are dealt into buckets of about this size, but into so many files at most, which
# are open together; beyond half a million candidates buckets grow.
BUCKET_ROWS, BUCKETS = 4096, 128
AUDIT = {
    "prompt_id": TEXT, "k": WHOLE, "source": TEXT, "policy": TEXT, "temperature": NUMBER, "category": TEXT, "is_safety": TRUTH,
    "text": TEXT, "finish": TEXT, "helpfulness": NUMBER, "safety": NUMBER, "branch": WHOLE, "score": NUMBER, "rank": WHOLE,
    "role": TEXT,  # selected, chosen, rejected, ranked; empty: not used
}  # fmt: skip


@dataclass
class Tally:
    """What the selection did, over all prompts."""

    counts: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)  # of the responses that a method took
    sums: Counter[str] = field(default_factory=Counter)


def run(job: Job) -> dict[str, Any]:
    """Write rows.parquet (what the method's `select` returns) and audit.parquet (every candidate and what became of it).

    Raises:
        StageError: no candidates, scores of different reward models, a method without `select`, nothing selected.
    """
    recipe: Select = job.recipe
    files = [file for folder in job.folders("scored") for file in parts(folder) if file.name.startswith("scored-")]
    newest, pool = _survey(files)
    method = methods.load(recipe.method)
    if not hasattr(method, "select"):
        raise StageError(f"method {recipe.method} has no select; choose one that makes rows from scored responses")
    wanted = {f"round-{newest}"} if recipe.rounds == "previous" else None
    config, choose = _chooser(method, recipe, files, wanted)
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch, table_writer(job.out / "audit.parquet", AUDIT) as audit:
        buckets = [Path(scratch) / f"{i:05d}.arrow" for i in range(min(BUCKETS, math.ceil(pool / BUCKET_ROWS)))]
        deal(_batches(files, wanted), lambda prompt: int(share_of(prompt) * len(buckets)), "prompt_id", buckets)
        chosen = _choose(job, recipe, choose, buckets, audit, tally)
        first = next(chosen, None)
        if first is None:
            raise StageError(f"method {recipe.method} selected nothing from {pool} responses: {dict(tally.counts)}")
        written = write_rows(job.out / "rows.parquet", _schema(first), chain([first], chosen))
        if hasattr(method, "target"):  # what sampling from a model of these rows has to ask for
            (job.out / "condition.json").write_text(json.dumps({"text": method.target(config)}) + "\n")
    prompts = tally.counts["prompts"]
    return {
        "rows": written,
        **dict(sorted(tally.counts.items())),
        "sources": dict(sorted(tally.sources.items())),
        **{name: value / prompts for name, value in sorted(tally.sums.items())},
    }


def _survey(files: Sequence[Path]) -> tuple[int, int]:
    """The newest round among the candidates and how many candidates there are; scores must be comparable."""
    rounds, rewards = set(), set()
    for file in files:
        for row in read_rows(file, "Scored", ("source", "rewards")):
            rounds.add(int(row["source"].rpartition("-")[2]))
            rewards.add(row["rewards"])
    if not rounds:
        raise StageError("no scored responses to select from")
    if len(rewards) != 1:
        raise StageError(f"scores of {len(rewards)} different sets of reward models; score all samples again under one")
    return max(rounds), sum(count_rows(file) for file in files)


def _batches(files: Iterable[Path], wanted: set[str] | None) -> Iterator[pa.RecordBatch]:
    """The candidates of the wanted rounds."""
    for file in files:
        for batch in read_batches(file, "Scored"):
            yield batch if wanted is None else batch.filter(pc.is_in(batch.column("source"), pa.array(sorted(wanted))))


def _chooser(method: Any, recipe: Select, files: Sequence[Path], wanted: set[str] | None) -> tuple[Any, Choice]:
    """The method's config and its choice among one prompt's candidates.

    A method with `fit` compares responses of different prompts: it is fitted to the scores of those that it may choose, and
    chooses by them, in the unit of `Scale`; the audit keeps the raw ones.
    """
    config = method.Config(**recipe.config)
    if not hasattr(method, "fit"):
        return config, lambda candidates, rng: list(method.select([dict(c) for c in candidates], config, rng))
    columns = ["helpfulness", "safety", "is_safety", "finish"]
    pool = [row for batch in _batches(files, wanted) for row in batch.select(columns).to_pylist()]
    scored = ranked(pool, recipe.threshold)
    scale = Scale(scored)
    whole = [row for row in scored if row["finish"] != "length" or getattr(config, "truncated", "") != "exclude"]
    config = method.fit([scale(row) for row in whole or scored], config)
    return config, lambda candidates, rng: list(
        method.select([{**c, "score": scale(c)} for c in candidates], config, rng)
    )


def _columns(rows: Iterable[Row]) -> tuple[list[float], list[float | None], list[bool]]:
    """Helpfulness, safety and tag of every row."""
    found: tuple[list[float], list[float | None], list[bool]] = ([], [], [])
    for row in rows:
        for column, name in zip(found, ("helpfulness", "safety", "is_safety")):
            column.append(row[name])
    return found


def _choose(
    job: Job, recipe: Select, choose: Choice, buckets: Sequence[Path], audit: Audit, tally: Tally
) -> Iterator[Row]:
    """The training rows, prompt by prompt; what became of every candidate goes to `audit`."""
    for number, bucket in enumerate(buckets):
        prompts: dict[str, list[Row]] = {}
        for row in dealt(bucket):
            prompts.setdefault(row["prompt_id"], []).append(row)
        for prompt, rows in prompts.items():
            candidates = ranked(rows, recipe.threshold)
            rng = random.Random(f"{recipe.seed}:select:{prompt}")
            taken = choose(candidates, rng)
            _mark(candidates, taken)
            _count(tally, candidates)
            audit({column: candidate[column] for column in AUDIT} for candidate in candidates)
            yield from (_training_row(candidates, row, i) for i, row in enumerate(taken))
        job.progress(number + 1, len(buckets), "bucket")


def ranked(rows: Sequence[Row], threshold: float) -> list[Row]:
    """One prompt's candidates with branch, score and rank (1 = best by branch, then score), in the order they came."""
    branches, scores = combine(*_columns(rows), threshold)
    order = sorted(range(len(rows)), key=lambda i: (-branches[i], -scores[i], i))
    rank = {i: place + 1 for place, i in enumerate(order)}
    return [
        {**row, "branch": branches[i], "score": scores[i], "rank": rank[i], "role": ""} for i, row in enumerate(rows)
    ]


def _mark(candidates: Sequence[Row], taken: Sequence[Row]) -> None:
    """Write into the candidates what the method used them for: the best-ranked one of equal texts counts."""
    best = {c["text"]: c for c in sorted(candidates, key=lambda c: -c["rank"])}
    roles = {"response": "selected", "chosen": "chosen", "rejected": "rejected"}
    for row in taken:
        for column, role in roles.items():
            if column in row:
                best[row[column]]["role"] = role
        for text in row.get("responses", ()):
            best[text]["role"] = "ranked"


def _count(tally: Tally, candidates: Sequence[Row]) -> None:
    """What is worth watching over rounds (METHODS 3.7)."""
    used = [c for c in candidates if c["role"] in ("selected", "chosen", "ranked")]
    scores = sorted(c["score"] for c in candidates)
    best = next(c for c in candidates if c["rank"] == 1)
    tally.sources.update(c["source"] for c in used)
    tally.counts.update(
        prompts=1,
        candidates=len(candidates),
        used=len(used),
        without_winner=not used,
        no_signal=len({(c["branch"], c["score"]) for c in candidates}) == 1,
        all_unsafe=best["branch"] == 0,
        unfinished_used=sum(c["finish"] != "eos" for c in used),
        duplicates=len(candidates) - len({c["text"] for c in candidates}),
    )
    tally.sums.update(
        best_score=best["score"],
        median_score=scores[len(scores) // 2],
        length=sum(len(c["token_ids"]) for c in candidates) / len(candidates),
        used_length=sum(len(c["token_ids"]) for c in used) / max(1, len(used)),
    )


def _training_row(candidates: Sequence[Row], row: Row, number: int) -> Row:
    """A method's row as one of our types, with the prompt's columns."""
    origin = next((c for c in candidates if c["text"] == row.get("response", row.get("chosen"))), candidates[0])
    shared = {"category": origin["category"], "is_safety": origin["is_safety"], "source": origin["source"]}
    if "response" in row:
        messages = [*_conditioned(origin["messages"], row.get("condition", "")), _said(row["response"])]
        return {"id": f"{origin['prompt_id']}/{number}", "messages": messages, "weight": row.get("weight"), **shared}
    shared |= {"prompt_id": origin["prompt_id"], "messages": origin["messages"]}
    if "chosen" in row:
        kind = "safety" if origin["is_safety"] else "helpfulness"
        more = {"grade": row.get("grade"), "kind": kind, "annotator": f"reward_model {origin['rewards']}"}
        return {**shared, "chosen": row["chosen"], "rejected": row["rejected"], **more}
    return {**shared, **{column: row.get(column) for column in ("responses", "scores", "attributes")}}


def _conditioned(messages: Sequence[Row], text: str) -> list[Row]:
    """The prompt with a method's condition at the end of its last user turn."""
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + text}]


def _said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _schema(row: Row) -> str:
    return "Preference" if "chosen" in row else "Ranking" if "responses" in row else "Example"
