"""Raw scores of every response, of all rounds so far, under one round's reward models."""

import json
from pathlib import Path
from typing import Any

from configs.recipes import Score
from engine.drawing import keep, restore
from engine.errors import StageError
from engine.job import Job
from engine.scoring import KINDS, Scorer, load_scorers, names, score_all
from storage.rows import count_rows, parts, read_rows, write_rows


def run(job: Job) -> dict[str, Any]:
    """Write scored-00000.parquet .., one for each file of samples; a save point after each.

    Raises:
        StageError: no samples, no reward model, samples and reward models that read through different templates.
    """
    recipe: Score = job.recipe
    folders = job.folders("samples")
    files = [file for folder in folders for file in responses(folder)]
    if not files or not job.folders("rewards"):
        raise StageError(f"score needs samples and reward models, found {len(files)} files of samples")
    scorers = load_scorers(job.folders("rewards"), job.runtime, _template(folders))
    total = sum(count_rows(file) for file in files)
    done, counts = restore(job, job.out)
    for number in range(done, len(files)):
        count, sums = _score(job, scorers, files[number], job.out / f"scored-{number:05d}.parquet", recipe)
        counts = {
            "responses": counts.get("responses", 0) + count,
            **{kind: counts.get(kind, 0.0) + value for kind, value in sums.items()},
        }
        job.progress(counts["responses"], total, "response")
        if number + 1 < len(files) and job.should_save(number + 1):
            keep(job, job.out, number + 1, counts)
    if counts["responses"] != total or total == 0:
        raise StageError(f"{counts['responses']} responses scored, want all {total}")
    means = {kind: counts[kind] / total for kind in KINDS if kind in counts}
    return {"responses": total, "files": len(files), "rewards": names(scorers), "mean": means}


def responses(folder: Path) -> list[Path]:
    """The response files of one sample artifact, in order."""
    return [file for file in parts(folder) if file.name.startswith("responses-")]


def _template(folders: list[Path]) -> str:
    """The template all samples were drawn through."""
    found = {json.loads((folder / "sampling.json").read_text())["template"] for folder in folders}
    if len(found) != 1:
        raise StageError(f"the samples come from {len(found)} different templates; they cannot be scored together")
    return str(found.pop())


def _score(job: Job, scorers: list[Scorer], file: Path, out: Path, recipe: Score) -> tuple[int, dict[str, float]]:
    """Score one file; returns how many rows, and the sum of each score."""
    rows = list(read_rows(file, "Response"))
    texts = [(row["messages"], row["text"]) for row in rows]
    found = score_all(scorers, texts, recipe.limits, job.runtime.score_rows)
    scored = (
        {**row, **{kind: found[kind][i] for kind in KINDS}, "rewards": names(scorers)} for i, row in enumerate(rows)
    )
    count = write_rows(out, "Scored", scored)
    return count, {scorer.kind: float(sum(v or 0.0 for v in found[scorer.kind])) for scorer in scorers}
