"""Every version under every round's reward models and under judges that steered nothing; best of n of each round's samples.

Raw scores of different reward models have no common unit. What is compared is the share of prompts on which a version beats
v0 under a judge, and the change of its mean since v0 in standard deviations of v0's own responses under that judge. The
proxy of a version are the reward models that steered it; the truth is gold, or the judge models where nobody knows gold.

Source: METHODS 9.3 (Gao et al. 2022).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.gates import Matrix
from engine.drawing import share_of
from engine.errors import StageError
from engine.evaluate import judged
from engine.job import Job
from engine.judges import judge
from engine.scoring import Scorer, combine, load_scorers, names
from engine.statistics import best_of_n, estimate, win_rate
from engine.tables import read_table
from engine.versions import BRANCH, gold_value
from storage.rows import parts, read_rows

Row = dict[str, Any]
Marks = list[tuple[int, float]]  # (branch, score) of each response under one judge
FIRST, BASE, GOLD, JUDGE = "v0", "base", "gold", "judge"


def run(job: Job) -> dict[str, Any]:
    """Write matrix.json: cells by version and judge, the gap of proxy and truth over the KL, where they part, best of n.

    Raises:
        StageError: no v0, versions that answered different prompts.
    """
    recipe: Matrix = job.recipe
    versions = {
        label: list(read_table(folder / "responses.parquet"))
        for label, folder in zip(recipe.versions, job.folders("versions"), strict=True)
    }
    if FIRST not in versions:
        raise StageError(f"the matrix measures from {FIRST}; the versions are {', '.join(versions) or 'none'}")
    asked = {tuple(row["prompt_id"] for row in rows) for rows in versions.values()}
    if len(asked) != 1:
        raise StageError(
            f"{len(versions)} versions answered {len(asked)} different sets of prompts; the matrix needs one"
        )
    rounds = _rounds(job)
    marks = _marks(job, versions, rounds)
    cells = {label: {name: _cell(recipe, by[label], by[FIRST]) for name, by in marks.items()} for label in versions}
    truth = next((name for name in (GOLD, JUDGE) if name in marks), None)
    kl = {label: sum(row["kl"] for row in rows) / len(rows) for label, rows in versions.items()}
    gaps = _gaps(cells, kl, dict(zip(recipe.versions, recipe.steered, strict=True)), truth)
    curves = [_curve(job, label, folder) for label, folder in zip(recipe.scored, job.folders("scored"), strict=True)]
    table = {
        "versions": list(versions),
        "judges": [{"name": name, "rewards": names(rounds[name]) if name in rounds else ""} for name in marks],
        "truth": truth,
        "kl": kl,
        "cells": cells,
        "gaps": gaps,
        "parting": parting(gaps, truth, lambda a, b, name: _difference(recipe, marks[name], a, b)),
        "best_of_n": [curve for curve in curves if curve],
    }
    (job.out / "matrix.json").write_text(json.dumps(table, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return {
        "prompts": len(asked.pop()),
        "judges": list(marks),
        "truth": truth,
        "gaps": gaps,
        "parting": table["parting"],
    }


def _rounds(job: Job) -> dict[str, list[Scorer]]:
    """The reward models of each round."""
    recipe: Matrix = job.recipe
    folders, found = job.folders("rewards"), {}
    if sum(recipe.models) != len(folders):
        raise StageError(f"matrix.models {list(recipe.models)} count {sum(recipe.models)}, {len(folders)} are given")
    for label, count in zip(recipe.rounds, recipe.models, strict=True):
        found[label], folders = load_scorers(folders[:count], job.runtime), folders[count:]
    return found


def _marks(job: Job, versions: dict[str, list[Row]], rounds: dict[str, list[Scorer]]) -> dict[str, dict[str, Marks]]:
    """Judge -> version -> marks: every round's reward models, the judge models, gold."""
    recipe: Matrix = job.recipe
    every = [row for rows in versions.values() for row in rows]
    flat: dict[str, Marks] = {}
    independent = load_scorers(job.folders("judges"), job.runtime)
    for label, scorers in [*rounds.items(), *([(JUDGE, independent)] if independent else [])]:
        found = judged(every, scorers, recipe.limits, job.runtime.score_rows, recipe.threshold)
        flat[label] = [(b, s) for b, s in found if b is not None and s is not None]
        job.progress(len(flat), len(rounds) + bool(independent), "judge")
    if every[0]["gold"] is not None:
        flat[GOLD] = [(0, row["gold"]) for row in every]  # gold has its branches in itself
    size = len(versions[FIRST])
    return {
        name: {label: marks[i * size : (i + 1) * size] for i, label in enumerate(versions)}
        for name, marks in flat.items()
    }


def _cell(recipe: Matrix, marks: Marks, first: Marks) -> dict[str, Any]:
    """A version under one judge: mean score, its change since v0 in v0's standard deviations, wins over v0."""
    scores, before = (np.array([score for _, score in side]) for side in (marks, first))
    change = estimate(((scores - before) / _unit(before)).tolist(), resamples=recipe.bootstrap, seed=recipe.seed)
    sides = [[score + BRANCH * branch for branch, score in side] for side in (marks, first)]
    wins = win_rate(*sides, resamples=recipe.bootstrap, seed=recipe.seed)
    return {"mean": float(scores.mean()), "change": asdict(change), "wins": asdict(wins.rate)}


def _gaps(
    cells: dict[str, Any], kl: dict[str, float], steered: dict[str, str], truth: str | None
) -> list[dict[str, Any]]:
    """Each version's change by the reward models that steered it and by the truth, in order of the KL to v0."""
    found = []
    for label in sorted((one for one in cells if one != BASE), key=lambda one: kl[one]):
        by = steered[label]
        proxy = cells[label][by]["change"] if by in cells[label] else None
        true = cells[label][truth]["change"] if truth else None
        found.append({
            "version": label,
            "kl": kl[label],
            "proxy_of": by,
            "proxy": proxy,
            "truth": true,
            "gap": proxy["mean"] - true["mean"] if proxy and true else None,
        })  # fmt: skip
    return found


def parting(
    gaps: Sequence[dict[str, Any]], truth: str | None, difference: Callable[[str, str, str], dict[str, float]]
) -> dict[str, Any] | None:
    """The first version, by KL, whose reward models say that it beats the best one nearer to v0 while the truth does not.

    The best is the one of highest truth among those with a smaller KL (v0 stands at 0, 0). `Say`: the whole 95 % interval of
    the paired difference is above 0; the truth does not where its mean difference is not above 0.

    Args:
        truth: the judge that is taken for the truth; None where there is none.
        difference: (version, other, judge) -> mean, low and high of the paired difference under that judge.

    Returns None where there is no such version: proxy and truth have not parted.
    """
    best: dict[str, Any] | None = None
    for gap in gaps:
        if truth is None or gap["truth"] is None:
            continue
        if best and gap["proxy"]:
            pair = (gap["version"], best["version"])
            proxy, true = difference(*pair, gap["proxy_of"]), difference(*pair, truth)
            if proxy["low"] > 0 and true["mean"] <= 0:
                return {"version": gap["version"], "kl": gap["kl"], "peak": best["version"], "peak_kl": best["kl"],
                        "proxy": proxy, "truth": true}  # fmt: skip
        if best is None or gap["truth"]["mean"] > best["truth"]["mean"]:
            best = gap
    return None


def _difference(recipe: Matrix, marks: dict[str, Marks], version: str, other: str) -> dict[str, float]:
    """A version's scores less another's on the same prompts, in standard deviations of v0's under the same judge."""
    mine, theirs, first = (np.array([score for _, score in marks[label]]) for label in (version, other, FIRST))
    gaps = (mine - theirs) / _unit(first)
    return asdict(estimate(gaps.tolist(), resamples=recipe.bootstrap, seed=recipe.seed))


def _unit(scores: np.ndarray) -> float:
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    return spread if spread > 0 else 1.0


def bon_kl(n: int) -> float:
    """KL of best of n to one sample: exact for continuous scores, an upper bound where scores tie. Nats."""
    return math.log(n) - (n - 1) / n


def fitted(points: Sequence[dict[str, Any]], name: str) -> dict[str, float] | None:
    """alpha and beta of R(d) = d (alpha - beta d), d the root of the KL, by least squares; and the KL at the peak."""
    d = np.array([math.sqrt(point["kl"]) for point in points if point["n"] > 1])
    gain = np.array([point[name]["mean"] for point in points if point["n"] > 1])
    if len(d) < 2:
        return None
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * d], axis=1), gain, rcond=None)
    found = {"alpha": float(alpha), "beta": float(-minus_beta)}
    return found | ({"peak_kl": float((alpha / (-2 * minus_beta)) ** 2)} if alpha > 0 > minus_beta else {})


def _curve(job: Job, label: str, folder: Path) -> dict[str, Any] | None:
    """Proxy and gold of the proxy's best of n among a round's own samples, n = 1 .. K; None where nobody knows gold."""
    recipe: Matrix = job.recipe
    gold = judge(recipe.judge)
    files = [file for file in parts(folder) if file.name.startswith("scored-")]
    if gold is None:
        return None
    prompts: dict[str, list[Row]] = {}
    for file in files:
        for row in read_rows(file, "Scored"):
            if row["source"] == label:
                prompts.setdefault(row["prompt_id"], []).append(row)
    k = min(map(len, prompts.values()), default=0)
    if k < 2:
        return None
    chosen = sorted(prompts, key=lambda name: share_of(f"best-of-n:{name}"))[: recipe.prompts]
    proxies, truths, orders = [], [], []
    for name in chosen:
        rows = prompts[name]
        branches, scores = combine(
            [row["helpfulness"] for row in rows], [row["safety"] for row in rows], [row["is_safety"] for row in rows],
            recipe.threshold,
        )  # fmt: skip
        known = [gold.score(row["messages"], row["text"]) for row in rows]
        orders.append([score + BRANCH * branch for branch, score in zip(branches, scores)])
        proxies.append(list(scores))
        truths.append([gold_value(g.helpfulness, g.safety, row["is_safety"]) for g, row in zip(known, rows)])
    points = [
        {"n": n, "kl": bon_kl(n), "proxy": _gain(recipe, orders, proxies, n), "truth": _gain(recipe, orders, truths, n)}
        for n in range(1, k + 1)
    ]
    return {
        "round": label, "rewards": next(iter(prompts.values()))[0]["rewards"], "prompts": len(chosen), "k": k,
        "points": points, "fit": {name: fitted(points, name) for name in ("proxy", "truth")},
    }  # fmt: skip


def _gain(
    recipe: Matrix, orders: Sequence[Sequence[float]], values: Sequence[Sequence[float]], n: int
) -> dict[str, float]:
    """What the proxy's best of n has more of than one sample, in standard deviations of all samples, over prompts."""
    flat = np.array([value for row in values for value in row])
    unit = float(flat.std(ddof=1)) or 1.0
    gains = [(best_of_n(order, row, n) - sum(row) / len(row)) / unit for order, row in zip(orders, values)]
    return asdict(estimate(gains, resamples=recipe.bootstrap, seed=recipe.seed))
