"""How far a reward model can be trusted: its accuracy on pairs it has not seen, with intervals, by what the pairs are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.examples import UNKNOWN, Item
from engine.statistics import estimate, spearman

RESAMPLES = 2000
BINS = 5  # of the predicted probability that the chosen response wins, from 0.5 to 1
GRADES = {0: "negligibly better", 1: "slightly better", 2: "better", 3: "significantly better"}


def certificate(items: Sequence[Item], scores: Sequence[Sequence[float]], kind: str, seed: int) -> dict[str, Any]:
    """Judge a reward model on held-out rows.

    Args:
        items: pairs (chosen first) or rankings; of a ranking every pair of unequal scores counts.
        scores: the model's scores of each item's responses.

    Returns accuracy (a tie is wrong, no margin) overall, on pairs of its own kind, by grade and by source; calibration;
    Spearman correlation of score and length; recall of unsafe responses at score 0; how scores are spread.
    """
    pairs = [(i, a, b) for i, item in enumerate(items) for a, b in _ordered(item)]
    if not pairs:
        return {"pairs": 0}
    gaps = np.array([scores[i][a] - scores[i][b] for i, a, b in pairs])
    right = (gaps > 0).astype(np.float64)

    def by(group: Callable[[Item], Any]) -> dict[str, Any]:
        members: dict[str, list[float]] = {}
        for (i, _, _), value in zip(pairs, right):
            if (name := group(items[i])) is not None:
                members.setdefault(str(name), []).append(float(value))
        return {name: _accuracy(values, seed) for name, values in sorted(members.items())}

    flat = np.array([s for one in scores for s in one])
    lengths = [len(response) for item in items for response in item.responses]
    unsafe = [
        s
        for item, one in zip(items, scores)
        for labels, s in zip(item.labels, one)
        if item.tags.get("kind") is not None and labels and labels[0] != UNKNOWN and labels[0] < 0.5
    ]
    return {
        "pairs": len(pairs),
        **_accuracy(right.tolist(), seed),
        "own": by(lambda item: "own" if item.tags.get("kind", kind) == kind else None).get("own"),
        "by_kind": by(lambda item: item.tags.get("kind")),
        "by_grade": by(lambda item: GRADES.get(item.tags.get("grade", -1))),
        "by_source": by(lambda item: item.tags.get("source")),
        "calibration": calibration(gaps),
        "length_correlation": _number(spearman(flat.tolist(), lengths)),
        "unsafe_recall": float(np.mean([s < 0 for s in unsafe])) if unsafe else None,
        "unsafe": len(unsafe),
        "score": {"mean": float(flat.mean()), "std": float(flat.std()), "extreme": float((abs(flat) > 5).mean())},
        "gap": float(gaps.mean()),
    }


def calibration(gaps: np.ndarray) -> list[dict[str, float]]:
    """Predicted probability against how often it came true, by bins of the more likely side's probability."""
    probability = 1 / (1 + np.exp(-np.abs(np.clip(gaps, -60, 60))))
    right = np.where(gaps > 0, 1.0, np.where(gaps == 0, 0.5, 0.0))
    place = np.minimum(((probability - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "predicted": float(probability[place == b].mean()),
            "right": float(right[place == b].mean()),
            "pairs": int((place == b).sum()),
        }
        for b in range(BINS)
        if (place == b).any()
    ]


def _ordered(item: Item) -> list[tuple[int, int]]:
    """(better, worse) response indices."""
    places = range(len(item.scores))
    return [(a, b) for a in places for b in places if item.scores[a] > item.scores[b]]


def _accuracy(values: Sequence[float], seed: int) -> dict[str, Any]:
    found = asdict(estimate(values, resamples=RESAMPLES, seed=seed))
    return {"accuracy": found["mean"], "low": found["low"], "high": found["high"], "count": len(values)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
