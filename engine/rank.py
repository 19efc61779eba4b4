"""The competitors of a bake-off, each against every other: paired over prompts, corrected for their number."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.recipes import Rank
from engine.errors import StageError
from engine.job import Job
from engine.statistics import distinct, holm
from engine.tables import read_table

MEASURES = ("gold", "gold_helpfulness", "gold_safety", "score", "helpfulness", "safety", "kl")
CHUNK = 2000  # bootstrap samples held at once
Scores = dict[str, dict[str, np.ndarray]]  # measure -> competitor -> [seeds, prompts]


def run(job: Job) -> dict[str, Any]:
    """Write ranking.json: every competitor, best first, with intervals; every pair with its corrected p-value.

    Raises:
        StageError: competitors that answered different prompts, or no measure to rank by.
    """
    recipe: Rank = job.recipe
    rows = read(job.folders("evaluations"), recipe)
    ranking = rank(rows, recipe)
    (job.out / "ranking.json").write_text(json.dumps(ranking, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return {
        "by": ranking["by"],
        "order": [entry["name"] for entry in ranking["entries"]],
        "planted_is_last": ranking["planted_is_last"],
        "prompts": ranking["prompts"],
    }


def read(folders: Sequence[Path], recipe: Rank) -> dict[str, list[list[dict[str, Any]]]]:
    """Held-out responses: competitor -> one list of rows a seed, prompts in one order."""
    names = list(recipe.versions)
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    for place, seed in enumerate(recipe.seeds):
        asked: set[tuple[str, ...]] = set()
        for name, folder in zip(names, folders[place * len(names) :], strict=False):
            rows = list(read_table(folder / "responses.parquet"))
            asked.add(tuple(row["prompt_id"] for row in rows))
            found[name].append(rows)
        if len(asked) != 1:
            raise StageError(f"seed {seed}: the competitors answered {len(asked)} different sets of prompts; want one")
    if len({len(rows) for rows in found[names[0]]}) != 1:  # seeds weigh the same: each gives as many prompts
        fewest = min(len(rows) for rows in found[names[0]])
        found = {name: [rows[:fewest] for rows in seeds] for name, seeds in found.items()}
    return found


def rank(rows: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], recipe: Rank) -> dict[str, Any]:
    """The whole ranking as plain data. Ranked by gold where there is a judge, else by the reward models' score."""
    names = list(rows)
    scores = {measure: found for measure in MEASURES if (found := _scores(rows, measure)) is not None}
    by = next((measure for measure in ("gold", "score") if measure in scores), None)
    if by is None or recipe.start not in names:
        raise StageError(f"nothing to rank by: no gold judge and no reward model, or no {recipe.start} to compare with")
    shape = scores[by][names[0]].shape
    drawn = resampled(np.stack([scores[measure][name] for measure in scores for name in names]), recipe.bootstrap)
    means = {m: dict(zip(names, drawn[i * len(names) :], strict=False)) for i, m in enumerate(scores)}
    pairs = {
        measure: compare_all(scores[measure], means[measure], recipe.level)
        for measure in ("gold", "score")
        if measure in scores
    }
    starts = against_start(scores[by], means[by], recipe.start, recipe.level)
    entries = [
        {
            "name": name,
            **{m: _estimate(scores[m][name], means[m][name]) for m in scores},
            "per_seed": scores[by][name].mean(axis=1).tolist(),
            **_style(rows[name]),
            "against_start": starts.get(name),
            "better_than": [other for other in names if _decided(pairs[by], name, other) > 0],
            "worse_than": [other for other in names if _decided(pairs[by], name, other) < 0],
        }
        for name in sorted(names, key=lambda name: (-float(scores[by][name].mean()), name))
    ]
    return {
        "by": by,
        "start": recipe.start,
        "planted": recipe.planted,
        "planted_is_last": None if recipe.planted is None else entries[-1]["name"] == recipe.planted,
        "seeds": list(recipe.seeds),
        "prompts": shape[1],
        "level": recipe.level,
        "bootstrap": recipe.bootstrap,
        "entries": entries,
        "pairs": pairs,
    }


def resampled(values: np.ndarray, count: int) -> np.ndarray:
    """Means of [N, seeds, prompts] values in `count` bootstrap samples: [N, count].

    Seeds are drawn first, then prompts inside each. The same draws serve all N, which is what makes a comparison paired.
    """
    _, seeds, prompts = values.shape
    rng = np.random.Generator(np.random.PCG64(0))
    found = np.empty((len(values), count))
    flat = values.reshape(len(values), -1)
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        weights = np.zeros((size, seeds, prompts))
        for i in range(size):
            for seed in rng.integers(0, seeds, size=seeds):
                weights[i, seed] += np.bincount(rng.integers(0, prompts, size=prompts), minlength=prompts)
        found[:, first : first + size] = flat @ weights.reshape(size, -1).T / flat.shape[1]
    return found


def p_value(differences: np.ndarray) -> float:
    """Two-sided: how often the resampled difference lies on the other side of 0, counting the data themselves once."""
    count = len(differences)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (count + 1))


def compare_all(
    scores: Mapping[str, np.ndarray], means: Mapping[str, np.ndarray], level: float
) -> list[dict[str, Any]]:
    """Every pair once: difference of the means with its interval, p by the bootstrap, p after Holm over all pairs."""
    names = list(scores)
    found: list[dict[str, Any]] = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            gap = means[a] - means[b]
            low, high = np.quantile(gap, [0.025, 0.975])
            found.append({"a": a, "b": b, "difference": float((scores[a] - scores[b]).mean()),
                          "low": float(low), "high": float(high), "p": p_value(gap)})  # fmt: skip
    for entry, corrected in zip(found, holm([entry["p"] for entry in found])):
        entry |= {"corrected": corrected, "significant": corrected < level}
    return found


def against_start(
    scores: Mapping[str, np.ndarray], means: Mapping[str, np.ndarray], start: str, level: float
) -> dict[str, dict[str, Any]]:
    """Every competitor against what it began from: a family of comparisons of its own, so fewer to correct for."""
    names = [name for name in scores if name != start]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        gap = means[name] - means[start]
        low, high = np.quantile(gap, [0.025, 0.975])
        found[name] = {"difference": float((scores[name] - scores[start]).mean()), "low": float(low), "high": float(high),
                       "p": p_value(gap)}  # fmt: skip
    for name, corrected in zip(names, holm([found[name]["p"] for name in names])):
        found[name] |= {"corrected": corrected, "significant": corrected < level}
    return found


def _scores(rows: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], measure: str) -> dict[str, np.ndarray] | None:
    found = {name: [[row.get(measure) for row in one] for one in seeds] for name, seeds in rows.items()}
    if any(value is None for seeds in found.values() for one in seeds for value in one):
        return None
    return {name: np.array(seeds, dtype=np.float64) for name, seeds in found.items()}


def _estimate(values: np.ndarray, means: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def _decided(pairs: Sequence[Mapping[str, Any]], name: str, other: str) -> int:
    """1 where `name` is significantly better than `other`, -1 where worse, 0 where nobody can tell."""
    for pair in pairs:
        if {pair["a"], pair["b"]} == {name, other} and pair["significant"]:
            return 1 if (pair["difference"] > 0) == (pair["a"] == name) else -1
    return 0


def _style(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Length in tokens, share without EOS, and distinct n-grams, each the mean over the seeds."""
    mean = lambda values: float(np.mean(values))
    tokens = [[row["token_ids"] for row in rows] for rows in seeds]
    return {
        "length": mean([len(ids) for one in tokens for ids in one]),
        "missing_eos": mean([row["finish"] != "eos" for rows in seeds for row in rows]),
        **{f"distinct_{n}": mean([distinct(one, n) for one in tokens]) for n in (1, 2, 3)},
    }
