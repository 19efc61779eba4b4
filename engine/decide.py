"""What a changed base asks for: nothing, a short SFT, or new rounds; by thresholds, with every number that led there.

Each candidate on the new base (the chat model carried over, and the one rebuilt) is compared with the old chat model on the
same held-out prompts. A measure counts against a candidate when its mean is worse by the threshold and its interval
excludes no difference. The worst measure speaks for a candidate, the best candidate for the refresh.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.deciding import Decide
from engine.errors import StageError
from engine.job import Job
from engine.statistics import Estimate, paired, ratio
from engine.tables import read_table

Row = Mapping[str, Any]
ACTIONS = ("nothing", "short-sft", "rounds")


def run(job: Job) -> dict[str, Any]:
    """Write decision.json: action, the candidate that did best, reasons, and every comparison.

    Raises:
        StageError: candidates that answered other prompts than the old chat model.
    """
    recipe: Decide = job.recipe
    old = list(read_table(job.folder("old") / "responses.parquet"))
    compared = {}
    for label, folder in zip(recipe.candidates, job.folders("candidates"), strict=True):
        rows = list(read_table(folder / "responses.parquet"))
        before = _rescored(old, folder, recipe.old)
        if [row["prompt_id"] for row in rows] != [row["prompt_id"] for row in before]:
            raise StageError(f"{label} and {recipe.old} answered different prompts; a decision needs the same")
        compared[label] = compare(rows, before, recipe)
    levels = {label: max(found["level"] for found in measures.values()) for label, measures in compared.items()}
    best = min(levels, key=lambda label: (levels[label], _order(compared[label]), list(levels).index(label)))
    decision = {
        "action": ACTIONS[levels[best]],
        "candidate": best,
        "old": recipe.old,
        "reasons": reasons(compared[best], levels[best]),
        "levels": {label: ACTIONS[level] for label, level in levels.items()},
        "compared": compared,
        "base": losses(job.folder("measure"), recipe),
    }
    text = json.dumps(decision, sort_keys=True, indent=1, allow_nan=False)
    (job.out / "decision.json").write_text(text + "\n")
    job.progress(1, 1, "decision")
    return decision


def compare(rows: Sequence[Row], before: Sequence[Row], recipe: Decide) -> dict[str, dict[str, Any]]:
    """Every measure of a candidate: how much worse than the old model (below 0 = better), and the level that calls for."""
    bounds = recipe.thresholds
    found: dict[str, dict[str, Any]] = {}

    def measure(name: str, bound: Any, worse: Estimate, **more: Any) -> None:
        level = sum(worse.low > 0 and worse.mean >= limit for limit in (bound.short, bound.rounds))
        found[name] = {"worse": asdict(worse), "level": level, "short": bound.short, "rounds": bound.rounds, **more}

    def difference(value: Callable[[Row], float], of: Callable[[Row], bool] = lambda row: True) -> Estimate | None:
        pairs = [(value(b), value(a)) for a, b in zip(rows, before) if of(a)]
        if not pairs:
            return None
        theirs, mine = zip(*pairs)
        return paired(theirs, mine, resamples=recipe.bootstrap, seed=recipe.seed)

    spread = _spread(before)
    if spread is not None:
        scaled = lambda row: row["score"] / spread
        if (worse := difference(scaled)) is not None:
            measure("score", bounds.score, worse, unit="sd")
        counts = Counter(row["category"] for row in rows)
        by_category = {
            name: d
            for name in sorted(name for name, count in counts.items() if count >= recipe.least)
            if (d := difference(scaled, lambda row, name=name: row["category"] == name)) is not None  # type: ignore[misc]
        }
        if by_category:
            worst = max(by_category, key=lambda name: by_category[name].mean)
            every = {name: asdict(d) for name, d in by_category.items()}
            measure("category", bounds.category, by_category[worst], unit="sd", worst=worst, categories=every)
    if rows[0]["gold"] is not None and (worse := difference(lambda row: row["gold"])) is not None:
        measure("gold", bounds.gold, worse, unit="gold")
    refuses = lambda row: float(any(phrase in row["text"].casefold() for phrase in recipe.refusals))
    if (worse := difference(refuses, lambda row: row["is_safety"])) is not None:
        rates = _rates(rows, before, refuses, True)
        measure("refusals", bounds.refusals, worse, unit="share", **rates)
    if (worse := difference(lambda row: -refuses(row), lambda row: not row["is_safety"])) is not None:
        rates = _rates(rows, before, refuses, False)
        measure("false_refusals", bounds.false_refusals, worse, unit="share", **rates)
    return found


def losses(folder: Path, recipe: Decide) -> dict[str, dict[str, Any]]:
    """Of each corpus how many nats a token the new base has more than the old one: above 0 forgotten, below 0 gained."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in read_table(folder / "documents.parquet"):
        found.setdefault((row["corpus"], row["model"]), []).append(row)
    corpora = dict.fromkeys(corpus for corpus, _ in found)
    changes = {}
    for corpus in corpora:
        before, after = (found[corpus, label] for label in (recipe.before, recipe.after))
        change = np.array([a["nats"] - b["nats"] for a, b in zip(after, before)])
        tokens = np.array([row["tokens"] for row in before])
        told = asdict(ratio(change, tokens, resamples=recipe.bootstrap, seed=recipe.seed))
        changes[corpus] = {"kind": "new" if corpus == recipe.new else "old", "nats_per_token": told}
    return changes


def reasons(measures: Mapping[str, Mapping[str, Any]], level: int) -> list[str]:
    """One line for each measure that calls for the action; for none, what was compared."""
    if level == 0:
        return [f"not worse than before by {', '.join(measures)}"]
    lines = []
    for name, found in measures.items():
        if found["level"] == level:
            bound = found["short" if level == 1 else "rounds"]
            where = f" in {found['worst']}" if "worst" in found else ""
            worse = found["worse"]
            lines.append(
                f"{name}{where} worse by {worse['mean']:.3g} {found['unit']} ({worse['low']:.3g} to {worse['high']:.3g}), "
                f"bound {bound:g}"
            )
    return lines


def _rescored(old: Sequence[Row], folder: Path, label: str) -> list[Row]:
    """The old model's responses with their scores under the candidate's reward models."""
    scores = {r["prompt_id"]: r for r in read_table(folder / "rescored.parquet") if r["version"] == label}
    if scores.keys() != {row["prompt_id"] for row in old}:
        raise StageError(f"{label} was not compared with on the same prompts; a decision needs the same")
    names = ("helpfulness", "safety", "branch", "score", "gold")
    return [{**row, **{name: scores[row["prompt_id"]][name] for name in names}} for row in old]


def _spread(rows: Sequence[Row]) -> float | None:
    """Standard deviation of the scores; None without reward models or where all scores are equal."""
    if rows[0]["score"] is None:
        return None
    spread = float(np.std([row["score"] for row in rows]))
    return spread if spread > 0 else None


def _rates(
    rows: Sequence[Row], before: Sequence[Row], refuses: Callable[[Row], float], safety: bool
) -> dict[str, float]:
    """The plain shares of refusals before and after, on the safety prompts or on the others."""
    some = [(refuses(b), refuses(a)) for a, b in zip(rows, before) if a["is_safety"] == safety]
    return {"before": sum(b for b, _ in some) / len(some), "after": sum(a for _, a in some) / len(some)}


def _order(measures: Mapping[str, Mapping[str, Any]]) -> float:
    """Among candidates of one level the one that lost least by the broadest measure there is comes first."""
    for name in ("gold", "score", "refusals"):
        if name in measures:
            return float(measures[name]["worse"]["mean"])
    return 0.0
