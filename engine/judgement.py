"""Numbers about a reward model's scores of pairs whose order is known: accuracy, calibration, bias, agreement, drift.

Letters: N pairs. A gap is the score of the better response less that of the worse one; a tie is wrong (METHODS 2.7).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.certificate import calibration
from engine.statistics import spearman

Z = 1.959964  # of a two-sided 95 % interval
MATCHED = 0.1  # responses whose lengths differ by at most this share of the longer (and one token) are equally long
STYLES: Mapping[str, Callable[[str], float]] = {
    "sentences": lambda text: float(len(re.findall(r"[.!?]+(?:\s|$)", text))),
    "exclamations": lambda text: float(text.count("!")),
    "questions": lambda text: float(text.count("?")),
    "list_items": lambda text: float(len(re.findall(r"^\s*(?:[-*+]|\d+[.)])\s", text, re.MULTILINE))),
    "markup": lambda text: float(len(re.findall(r"\*\*|`|^#", text, re.MULTILINE))),
    "digits": lambda text: float(sum(c.isdigit() for c in text)),
    "word_length": lambda text: len("".join(text.split())) / max(1, len(text.split())),
}


def accuracy(gaps: np.ndarray) -> dict[str, float]:
    """Share of gaps above zero with its Wilson interval, which also holds for few pairs and for shares of 0 and 1."""
    count = len(gaps)
    right = float((gaps > 0).sum())
    middle = (right + Z * Z / 2) / (count + Z * Z)
    half = Z / (count + Z * Z) * math.sqrt(right * (count - right) / count + Z * Z / 4)
    return {"accuracy": right / count, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "count": count}


def grouped(gaps: np.ndarray, names: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Accuracy of each group of pairs; pairs named None belong to none."""
    groups = sorted({str(name) for name in names if name is not None})
    return {group: accuracy(gaps[[name is not None and str(name) == group for name in names]]) for group in groups}


def reliability(gaps: np.ndarray) -> dict[str, Any]:
    """Expected calibration error and the bins of the reliability plot (sigmoid of the gap against how often it is right)."""
    bins = calibration(gaps)
    error = sum(one["pairs"] * abs(one["predicted"] - one["right"]) for one in bins) / len(gaps)
    return {"error": error, "bins": bins}


def length_bias(gaps: np.ndarray, longer: np.ndarray, longest: np.ndarray) -> dict[str, Any]:
    """How far the order of responses follows their lengths.

    Args:
        longer: [N] tokens of the better response less those of the worse. longest: [N] tokens of the longer one.

    Returns slope (score a token) of the line through the origin, correlation of gaps and lengths, how often the model and the
    annotators take the longer one, accuracy where both are equally long, accuracy of what the slope leaves, and `rule`: what
    always taking the longer (or always the shorter) would have got.
    """
    square = float((longer * longer).sum())
    slope = float((gaps * longer).sum()) / square if square else 0.0
    scale = math.sqrt(square * float((gaps * gaps).sum()))
    differ = longer != 0
    longer_wins = float((longer > 0).mean() + (longer == 0).mean() / 2)
    matched = np.abs(longer) <= np.maximum(1, MATCHED * longest)
    picked = np.where(longer > 0, gaps > 0, gaps < 0)[differ]
    chosen = (longer > 0)[differ]
    return {
        "slope": slope,
        "correlation": slope * square / scale if scale else 0.0,
        "picks_longer": float(picked.mean()) if len(picked) else 0.5,
        "rule": max(longer_wins, 1 - longer_wins),
        "longer_is_better": float(chosen.mean()) if len(chosen) else 0.5,
        "matched": accuracy(gaps[matched]) if matched.any() else None,
        "without_slope": accuracy(gaps - slope * longer),
    }


def style_bias(gaps: np.ndarray, better: Sequence[str], worse: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each mark of style: of the pairs that differ in it, how often the model's choice has more, and the annotators'."""
    found = {}
    for name, measure in STYLES.items():
        more = np.array([measure(a) - measure(b) for a, b in zip(better, worse)])
        differ = more != 0
        if differ.any():
            model = np.where(more > 0, gaps > 0, gaps < 0)[differ]
            found[name] = {
                "pairs": int(differ.sum()),
                "model": float(model.mean()),
                "annotators": float((more > 0)[differ].mean()),
            }
    return found


def agreement(gaps: np.ndarray, others: np.ndarray, kinds: Sequence[Any]) -> dict[str, Any]:
    """Two models on the same pairs: how often they order a pair alike, and each one's accuracy on each kind of pair."""
    return {
        "alike": float((np.sign(gaps) == np.sign(others)).mean()),
        "by_kind": grouped(gaps, kinds),
        "other_by_kind": grouped(others, kinds),
    }


def unsafe(scores: Sequence[float], safe: Sequence[bool], threshold: float) -> dict[str, Any]:
    """Recall of responses labelled unsafe below the threshold, its 95 % interval's upper end, how many safe ones are below."""
    marked = np.array(scores) < threshold
    is_safe = np.array(safe, dtype=bool)
    return {
        "threshold": threshold,
        "unsafe": int((~is_safe).sum()),
        "safe": int(is_safe.sum()),
        "recall": float(marked[~is_safe].mean()) if (~is_safe).any() else None,
        "recall_high": accuracy(marked[~is_safe].astype(float))["high"] if (~is_safe).any() else None,
        "false_alarms": float(marked[is_safe].mean()) if is_safe.any() else None,
    }


def drift(
    scores: Sequence[float], before: Sequence[float], gaps: np.ndarray, gaps_before: np.ndarray
) -> dict[str, Any]:
    """A model against the one before it on the frozen probe set. Scales differ between models: only ranks are compared.

    Args:
        gaps: this model's gaps of the probe pairs; flipped says how many pairs the two order differently.
    """
    correlation = spearman(list(scores), list(before))
    return {
        "responses": len(scores),
        "rank_correlation": correlation if math.isfinite(correlation) else None,
        "mean": [float(np.mean(before)), float(np.mean(scores))],
        "std": [float(np.std(before)), float(np.std(scores))],
        "flipped": float((np.sign(gaps) != np.sign(gaps_before)).mean()),
    }
