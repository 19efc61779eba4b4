"""A Bradley-Terry model over bags of words: the floor that a reward model has to beat."""

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from zlib import crc32

Row = Mapping[str, object]
EPOCHS, RATE, DECAY = 8, 0.05, 1e-3
TESTED = 4  # one prompt in so many is held out


def accuracy(pairs: Sequence[Row], seed: int = 0) -> tuple[float, int]:
    """Share of held-out pairs whose chosen response it scores higher, and how many there were; split by prompt.

    pairs: rows with prompt_id, chosen, rejected.
    """
    train = [pair for pair in pairs if crc32(str(pair["prompt_id"]).encode()) % TESTED]
    test = [pair for pair in pairs if not crc32(str(pair["prompt_id"]).encode()) % TESTED]
    weights: Counter[str] = Counter()
    rng = random.Random(seed)
    for _ in range(EPOCHS):
        for pair in rng.sample(train, len(train)):
            difference = _difference(pair)
            pull = RATE / (1 + math.exp(_score(weights, difference)))
            for word, count in difference.items():
                weights[word] += pull * count - RATE * DECAY * weights[word]  # type: ignore[assignment]
    right = [_score(weights, _difference(pair)) > 0 for pair in test]
    return sum(right) / len(right), len(right)


def _difference(pair: Row) -> Counter[str]:
    found = _bag(str(pair["chosen"]))
    found.subtract(_bag(str(pair["rejected"])))
    return found


def _bag(text: str) -> Counter[str]:
    """Words, neighbouring words, and the length."""
    words = re.findall(r"\w+|[.!?]", text.lower())
    return Counter(words + [f"{a} {b}" for a, b in pairwise(words)]) + Counter({"<length>": len(words) // 4})


def _score(weights: Counter[str], difference: Counter[str]) -> float:
    return sum(weights[word] * count for word, count in difference.items())
