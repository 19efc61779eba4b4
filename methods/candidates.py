"""Scored responses of one prompt: which may be chosen, and how they compare. Plain Python, no torch.

A candidate is a dict with at least {text: str, score: float, branch: int, finish: "eos" | "length"}; the piecewise rule
compares (branch, score), because the two branches hold scores of different reward models.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

Candidate = dict[str, Any]  # values of the row types in storage/rows.py: text, numbers, lists
Row = dict[str, Any]
Truncated = Literal["exclude", "penalise", "keep"]
_GAP = 1.0  # by which the upper branch starts above the lower one in `comparable`


def eligible(candidates: Sequence[Candidate], truncated: Truncated, penalty: float) -> list[Candidate]:
    """Candidates that may be chosen: truncated ones left out or marked down, equal texts once, in their order.

    Of equal texts the one with the highest (branch, score) stays, the first of those.

    Raises:
        ValueError: a candidate without a finite score; names its place.
    """
    best: dict[str, Candidate] = {}
    for place, candidate in enumerate(candidates):
        if not math.isfinite(candidate["score"]):
            raise ValueError(f"candidate {place} has score {candidate['score']}: want a finite number, score it again")
        cut = candidate.get("finish") == "length"
        if cut and truncated == "exclude":
            continue
        if cut and truncated == "penalise":
            candidate = {**candidate, "score": candidate["score"] - penalty}
        kept = best.get(candidate["text"])
        if kept is None or rank(candidate) > rank(kept):
            best[candidate["text"]] = candidate
    return list(best.values())


def rank(candidate: Candidate) -> tuple[int, float]:
    """What candidates are compared by: (branch, score)."""
    return int(candidate.get("branch", 1)), float(candidate["score"])


def best_first(candidates: Sequence[Candidate], rng: random.Random) -> list[Candidate]:
    """Sorted by descending (branch, score); every order of equals is equally likely."""
    shuffled = list(candidates)
    rng.shuffle(shuffled)
    return sorted(shuffled, key=rank, reverse=True)


def comparable(candidates: Sequence[Candidate]) -> list[float]:
    """One number each that compares like (branch, score): the upper branch is lifted, where it must be, above the lower.

    Differences inside a branch are kept, so that methods that read distances may use the result.
    """
    lower = [c["score"] for c in candidates if rank(c)[0] == 0]
    upper = [c["score"] for c in candidates if rank(c)[0] > 0]
    lift = max(0.0, max(lower) - min(upper) + _GAP) if lower and upper else 0.0
    return [c["score"] + (lift if rank(c)[0] > 0 else 0.0) for c in candidates]


def check_truncated(method: str, truncated: str, penalty: float) -> None:
    """Raise ValueError unless the two settings of `eligible` make sense."""
    if truncated not in ("exclude", "penalise", "keep"):
        raise ValueError(f"{method}: truncated {truncated!r}: want exclude, penalise or keep")
    if not penalty >= 0:
        raise ValueError(f"{method}: penalty {penalty}: want a number >= 0")


def spread(ordered: Sequence[Candidate], size: int) -> list[Candidate]:
    """`size` of them at even steps, first and last among them; all where `size` is 0 or not less than there are."""
    if size == 0 or len(ordered) <= size:
        return list(ordered)
    return [ordered[i * (len(ordered) - 1) // (size - 1)] for i in range(size)]


def ranked_row(ordered: Sequence[Candidate]) -> list[Row]:
    """One row {responses, scores}, best first, scores made comparable; none where all are equal."""
    if len({rank(candidate) for candidate in ordered}) < 2:
        return []
    return [{"responses": [candidate["text"] for candidate in ordered], "scores": comparable(ordered)}]


def check_size(method: str, size: int) -> None:
    """Raise ValueError unless `size` can be the length of a ranking."""
    if size != 0 and size < 2:
        raise ValueError(f"{method}: size {size}: want 0 (all) or at least 2")


def quantile(scores: Sequence[float], q: float) -> float:
    """The smallest score that at least a share `q` of all scores do not exceed.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("no scores to fit to: want the scores of the whole pool")
    return sorted(scores)[max(math.ceil(q * len(scores)) - 1, 0)]


def moments(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation in fp64; 1 instead of a deviation that is 0 or has only one score.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("no scores to fit to: want the scores of the whole pool")
    mean = math.fsum(scores) / len(scores)
    var = math.fsum((s - mean) ** 2 for s in scores) / max(len(scores) - 1, 1)
    return mean, math.sqrt(var) if var > 0 else 1.0
