"""Raw scores of every response, of all rounds so far or of given examples, under one round's reward models."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from configs.recipes import Limits, Score
from engine.drawing import keep, restore
from engine.errors import StageError
from engine.job import Job
from engine.scoring import Scorer, load_scorers, names, score_all
from engine.template import Chat
from storage.rows import count_rows, parts, read_rows, write_rows

Row = dict[str, Any]
GIVEN = "rows.parquet"  # of an artifact of examples
PART = 16384  # responses held in memory at once


def run(job: Job) -> dict[str, Any]:
    """Write scored-00000.parquet .., one for each file of samples or examples; a save point after each.

    Raises:
        StageError: no samples, no reward model, samples and reward models that read through different templates.
    """
    folders = job.folders("samples")
    files = [file for folder in folders for file in responses(folder)]
    if not files or not job.folders("rewards"):
        raise StageError(f"score needs samples and reward models, found {len(files)} files of samples")
    scorers = load_scorers(job.folders("rewards"), job.runtime, _template(folders))
    total = sum(count_rows(file) for file in files)
    done, counts = restore(job, job.out)
    for number in range(done, len(files)):
        tally = _score(scorers, files[number], job, job.out / f"scored-{number:05d}.parquet")
        counts = {name: counts.get(name, 0) + value for name, value in tally.items()}
        job.progress(counts["responses"] + counts["dropped"], total, "response")
        if number + 1 < len(files) and job.should_save(number + 1):
            keep(job, job.out, number + 1, counts)
    count, dropped = counts["responses"], counts["dropped"]
    if count + dropped != total or count == 0:
        raise StageError(f"{count} responses scored and {dropped} dropped, want all {total}, and some scored")
    means = {scorer.kind: counts[scorer.kind] / count for scorer in scorers}
    left_out = {"dropped": dropped} if dropped else {}
    return {"responses": count, **left_out, "files": len(files), "rewards": names(scorers), "mean": means}


def responses(folder: Path) -> list[Path]:
    """The response files of one sample artifact, or the rows of an artifact of examples, in order."""
    return [file for file in parts(folder) if file.name.startswith("responses-") or file.name == GIVEN]


def _template(folders: list[Path]) -> str | None:
    """The template all samples were drawn through; None of examples, which are texts."""
    found = {
        json.loads(card.read_text())["template"] for folder in folders if (card := folder / "sampling.json").exists()
    }
    if len(found) > 1:
        raise StageError(f"the samples come from {len(found)} different templates; they cannot be scored together")
    return found.pop() if found else None


def _score(scorers: list[Scorer], file: Path, job: Job, out: Path) -> Counter[str]:
    """Score one file; returns how many rows, how many of them could not be read, and the sum of each score."""
    recipe: Score = job.recipe
    tally: Counter[str] = Counter(responses=0, dropped=0)

    def scored() -> Iterator[Row]:
        rows = (
            _given(file, scorers[0].chat, recipe.limits, tally) if file.name == GIVEN else read_rows(file, "Response")
        )
        while part := list(islice(rows, PART)):
            texts = [(row["messages"], row["text"]) for row in part]
            found = score_all(scorers, texts, recipe.limits, job.runtime.score_rows)
            for scorer in scorers:
                tally[scorer.kind] += sum(found[scorer.kind])
            for i, row in enumerate(part):
                yield {**row, **{name: values[i] for name, values in found.items()}, "rewards": names(scorers)}

    tally["responses"] = write_rows(out, "Scored", scored())
    return tally


def _given(file: Path, chat: Chat, limits: Limits, tally: Counter[str]) -> Iterator[Row]:
    """Examples as responses that somebody else gave: round 0. Those whose prompt does not fit are counted."""
    for row in read_rows(file, "Example"):
        messages, text = row["messages"][:-1], row["messages"][-1]["content"]
        if chat.fit_prompt(messages, limits.prompt_tokens) is None:
            tally["dropped"] += 1
            continue
        ids = chat.response_ids(text)
        yield {
            "prompt_id": row["id"], "k": 0, "messages": messages, "category": row["category"], "is_safety": row["is_safety"],
            "text": text, "token_ids": ids[: limits.response_tokens], "policy": "given", "temperature": 1.0,
            "finish": "eos" if len(ids) <= limits.response_tokens else "length", "source": "round-0",
        }  # fmt: skip
