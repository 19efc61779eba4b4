"""All versions of a campaign side by side under the last reward models."""

import json
import math
from typing import Any

from configs.recipes import Compare
from engine.errors import StageError
from engine.evaluate import EXTRA, add_judges, add_scores
from engine.job import Job
from engine.scoring import load_scorers, names
from engine.statistics import spearman
from engine.tables import TEXT, read_table, write_table
from engine.versions import MEANS, against, describe

BASE = "base"  # shown beside the versions, not one of them


def run(job: Job) -> dict[str, Any]:
    """Write table.json (one entry a version, trends, win matrix) and scored.parquet (every version's responses).

    Raises:
        StageError: no versions, or versions that answered different prompts.
    """
    recipe: Compare = job.recipe
    scorers = load_scorers(job.folders("rewards"), job.runtime)
    judges = load_scorers(job.folders("judges"), job.runtime)
    versions: dict[str, list[dict[str, Any]]] = {}
    for number, (label, folder) in enumerate(zip(recipe.versions, job.folders("versions"), strict=True)):
        rows = list(read_table(folder / "responses.parquet"))
        add_scores(rows, scorers, recipe.limits, job.runtime.score_rows, recipe.threshold)
        add_judges(rows, judges, recipe.limits, job.runtime.score_rows, recipe.threshold)
        versions[label] = rows
        job.progress(number + 1, len(recipe.versions), "version")
    asked = {tuple(row["prompt_id"] for row in rows) for rows in versions.values()}
    if len(asked) != 1:
        raise StageError(f"{len(versions)} versions answered {len(asked)} different sets of prompts; compare needs one")
    every = ({**row, "version": label} for label, rows in versions.items() for row in rows)
    write_table(job.out / "scored.parquet", every, {**EXTRA, "version": TEXT}, base="Scored")
    table = {
        "rewards": names(scorers),
        "versions": [
            {"version": label, **describe(rows, recipe.bootstrap, recipe.seed), "categories": _categories(rows)}
            for label, rows in versions.items()
        ],
        "trend": trend(versions),
        "matrix": {
            a: {b: against(versions[a], versions[b], recipe.bootstrap, recipe.seed) for b in versions if b != a}
            for a in versions
        },
    }
    (job.out / "table.json").write_text(json.dumps(table, sort_keys=True, indent=1, allow_nan=False) + "\n")
    return {"versions": list(versions), "prompts": len(asked.pop()), "trend": table["trend"], "means": _means(table)}


def trend(versions: dict[str, list[dict[str, Any]]]) -> dict[str, float | None]:
    """Spearman correlation of the version's number with each mean; the base model is no version."""
    aligned = [rows for label, rows in versions.items() if label != BASE]
    found: dict[str, float | None] = {}
    for column in MEANS:
        if any(rows[0].get(column) is None for rows in aligned):
            found[column] = None
            continue
        means = [sum(row[column] for row in rows) / len(rows) for rows in aligned]
        rho = spearman(list(range(len(means))), means)
        found[column] = None if math.isnan(rho) else rho
    return found


def _means(table: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """The plain numbers of the table, for the manifest."""
    return {
        entry["version"]: {
            **{column: entry[column]["mean"] if entry[column] else None for column in MEANS},
            "length": entry["length"],
            "missing_eos": entry["missing_eos"],
        }
        for entry in table["versions"]
    }


def _categories(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Means per category."""
    found: dict[str, dict[str, float | None]] = {}
    for category in sorted({row["category"] for row in rows}):
        some = [row for row in rows if row["category"] == category]
        found[category] = {
            "prompts": float(len(some)),
            **{c: None if some[0].get(c) is None else sum(row[c] for row in some) / len(some) for c in MEANS},
        }
    return found
