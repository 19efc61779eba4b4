"""How much the responses to one prompt repeat each other: self-BLEU (METHODS 9.5; Llama 2, figure 21)."""

import math
from collections import Counter
from collections.abc import Sequence

LONGEST = 4  # words of an n-gram


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean over the texts of each one's BLEU against the others: 1 where all are the same, lower = more diverse.

    Words are what spaces separate. None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    split = [text.split() for text in texts]
    return sum(bleu(words, [*split[:i], *split[i + 1 :]]) for i, words in enumerate(split)) / len(split)


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 against several references; n-grams of two words and more are smoothed by adding one.

    Source: Papineni et al. 2002; Lin and Och 2004 (BLEU+1) for the smoothing. A text without words is like nothing but another.
    """
    if not words:
        return float(any(not reference for reference in references))
    total = 0.0
    for n in range(1, LONGEST + 1):
        found = _grams(words, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _grams(reference, n)
        matched, count, extra = sum((found & most).values()), sum(found.values()), int(n > 1)
        if not matched + extra:
            return 0.0
        total += math.log((matched + extra) / (count + extra))
    nearest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return math.exp(total / LONGEST + min(0.0, 1 - nearest / len(words)))


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
