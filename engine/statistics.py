"""Numbers about versions: intervals, win rates, rank correlation, diversity, best of n. NumPy only, own generators."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
CHUNK = 1 << 20  # resampled values held at once


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval at LEVEL."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Wins:
    """How often A beats B on the same prompts; `rate` counts a tie as half, `decided` leaves ties out (nan if all tie)."""

    wins: int
    ties: int
    losses: int
    rate: Estimate
    decided: float


def estimate(values: Sequence[float], *, resamples: int, seed: int) -> Estimate:
    """Mean and percentile-bootstrap interval over independent units (one value a prompt).

    Raises:
        ValueError: no values, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(
            f"want at least one finite value, found {len(data)} with {int((~np.isfinite(data)).sum())} not finite"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(resamples)
    step = max(1, CHUNK // len(data))
    for first in range(0, resamples, step):
        take = min(step, resamples - first)
        means[first : first + take] = data[rng.integers(0, len(data), size=(take, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(data.mean()), float(low), float(high))


def ratio(above: np.ndarray, below: np.ndarray, *, resamples: int, seed: int) -> Estimate:
    """Sum of `above` over sum of `below` with its percentile-bootstrap interval, units [n] resampled in pairs.

    What a mean is not: units of different size (nats and tokens of documents) count by their size.

    Raises:
        ValueError: no units, other lengths, values that are not finite, or sizes that are not positive.
    """
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or not len(above):
        raise ValueError(f"want as many values as sizes, at least one, found {above.shape} and {below.shape}")
    if not np.isfinite(above).all() or not (below > 0).all():
        raise ValueError("want finite values and positive sizes")
    rng = np.random.Generator(np.random.PCG64(seed))
    found = np.empty(resamples)
    step = max(1, CHUNK // len(above))
    for first in range(0, resamples, step):
        take = min(step, resamples - first)
        drawn = rng.integers(0, len(above), size=(take, len(above)))
        found[first : first + take] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))


def paired(a: Sequence[float], b: Sequence[float], *, resamples: int, seed: int) -> Estimate:
    """Mean of a - b over the same prompts, with its interval."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: a paired comparison needs the same prompts")
    return estimate(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), resamples=resamples, seed=seed)  # type: ignore[arg-type]


def win_rate(a: Sequence[float], b: Sequence[float], *, resamples: int, seed: int, tie: float = 0.0) -> Wins:
    """Win rate of A over B, prompt by prompt; scores no further apart than `tie` are a tie (METHODS 9.4)."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: a win rate needs the same prompts")
    gap = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    wins, losses = int((gap > tie).sum()), int((gap < -tie).sum())
    points = np.where(gap > tie, 1.0, np.where(gap < -tie, 0.0, 0.5))
    rate = estimate(points, resamples=resamples, seed=seed)  # type: ignore[arg-type]
    return Wins(wins, len(gap) - wins - losses, losses, rate, wins / (wins + losses) if wins + losses else math.nan)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation with average ranks for ties; nan where one side is constant or there are fewer than two pairs."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    if len(x) < 2:
        return math.nan
    ranks = [_ranks(np.asarray(side, dtype=np.float64)) for side in (x, y)]
    centred = [r - r.mean() for r in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / scale if scale > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = count.cumsum()
    return (ends - (count - 1) / 2)[place]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the given order: below a level with family-wise error at most that level."""
    found, worst = [0.0] * len(p), 0.0
    for done, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        worst = max(worst, min(1.0, (len(p) - done) * p[i]))
        found[i] = worst
    return found


def best_of_n(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Unbiased estimate of the gold score of the proxy's best of n, from N >= n samples (METHODS 9.3).

    Samples whose proxy ties share their gold scores, which is what a random choice among them gives on average.
    """
    size = len(proxy)
    if not 1 <= n <= size or len(gold) != size:
        raise ValueError(
            f"best of {n} from {size} proxy and {len(gold)} gold scores: want 1 <= n <= samples, one gold each"
        )
    order = sorted(range(size), key=lambda i: proxy[i])
    total = math.comb(size, n)
    value, first = 0.0, 0
    while first < size:
        last = first
        while last < size and proxy[order[last]] == proxy[order[first]]:
            last += 1
        weight = math.comb(last, n) - math.comb(first, n)  # sets of n whose best lies in this group
        value += weight / total * sum(gold[i] for i in order[first:last]) / (last - first)
        first = last
    return value


def expected_max(scores: Sequence[float], n: int) -> float:
    """Unbiased estimate of the expected maximum of n draws."""
    return best_of_n(scores, scores, n)


def distinct(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Share of different n-grams among all n-grams of the sequences; 0 if none is long enough."""
    grams = [gram for sequence in sequences for gram in _grams(sequence, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(sequence: Sequence[Hashable], n: int = 2) -> float:
    """Share of the n-grams of one response that occurred in it before; 0 = nothing twice."""
    grams = _grams(sequence, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], order: int = 4) -> float:
    """Mean BLEU of each text against the others, on words, add-one smoothing above unigrams (METHODS 9.5).

    Identical texts give 1. Fewer than two texts have none: nan.
    """
    if len(texts) < 2:
        return math.nan
    words = [text.split() for text in texts]
    return sum(_bleu(one, words[:i] + words[i + 1 :], order) for i, one in enumerate(words)) / len(words)


def _bleu(candidate: Sequence[str], references: Sequence[Sequence[str]], order: int) -> float:
    if not candidate:
        return float(any(not reference for reference in references))
    logs = 0.0
    for n in range(1, order + 1):
        counts = Counter(_grams(candidate, n))
        best: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            best |= Counter(_grams(reference, n))
        met, total = sum((counts & best).values()), sum(counts.values())
        smooth = int(n > 1)
        if met + smooth == 0:
            return 0.0
        logs += math.log((met + smooth) / (total + smooth))
    nearest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    return math.exp(logs / order + min(0.0, 1 - nearest / len(candidate)))


def _grams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
