"""The bag-of-words floor learns what is in the words, and nothing else."""

import random

from benchmarks.bag_of_words import accuracy


def _pairs(rng: random.Random, chosen: str, rejected: str, count: int = 400) -> list[dict[str, str]]:
    words = ["red", "wood", "plums", "runs", "hides", "barn"]
    return [
        {
            "prompt_id": str(i),
            "chosen": f"{rng.choice(words)} {chosen} {rng.choice(words)}.",
            "rejected": f"{rng.choice(words)} {rejected} {rng.choice(words)}.",
        }
        for i in range(count)
    ]


def test_it_separates_pairs_that_a_word_tells_apart():
    share, tested = accuracy(_pairs(random.Random(0), "please", "never"))
    assert share == 1.0
    assert 60 < tested < 140  # a quarter of 400


def test_it_guesses_where_words_say_nothing():
    share, tested = accuracy(_pairs(random.Random(0), "and", "and", count=2000))
    assert abs(share - 0.5) < 3 * 0.5 / tested**0.5  # three standard errors
