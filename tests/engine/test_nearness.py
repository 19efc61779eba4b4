"""engine.nearness: MinHash estimates the Jaccard similarity, and nothing near is missed."""

import hashlib

import numpy as np
import pytest

from engine.nearness import BANDS, HASHES, ROWS, Hasher, Index, key_of


def words(first: int, last: int) -> str:
    return " ".join(f"w{i}" for i in range(first, last))


def test_shingles_are_the_windows_of_words() -> None:
    h = Hasher(3)
    assert len(h.shingles("a b c d e")) == 3  # abc bcd cde
    assert len(h.shingles("a b a b a b")) == 2  # aba bab
    assert len(h.shingles("a b")) == len(h.shingles("...")) == 1
    assert set(h.shingles("A  b, C!")) == set(h.shingles("a b c"))
    assert h.shingles("a b c")[0] != h.shingles("c b a")[0]  # order counts


@pytest.mark.parametrize("shared", [100, 300, 600, 900])
def test_equal_entries_estimate_the_jaccard_similarity(shared: int) -> None:
    """Two texts of 1000 different words with `shared` in common, as single-word sets: J = s / (2000 - s).

    Within 4 standard errors sqrt(J (1 - J) / 128) for each of four pairs.
    """
    h = Hasher(1)
    for turn in range(4):
        start = 10_000 * turn
        a, b = h.signature(words(start, start + 1000)), h.signature(words(start + 1000 - shared, start + 2000 - shared))
        j = shared / (2000 - shared)
        assert abs(float((a == b).mean()) - j) < 4 * (j * (1 - j) / HASHES) ** 0.5


def test_signature_does_not_depend_on_chunks_order_or_the_process() -> None:
    long = words(0, 9001)  # over two chunks of 4096 shingles
    h = Hasher(1)
    parts = [h.signature(words(i, min(i + 1000, 9001))) for i in range(0, 9001, 1000)]
    assert np.array_equal(
        h.signature(long), np.minimum.reduce(parts)
    )  # the minimum over a union is the minimum of minima


def test_signature_is_the_stated_arithmetic() -> None:
    """Worked out anew in whole numbers: stored signatures must stay comparable for ever."""
    mask, base = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    text = ["the", "fox", "is", "red", "and", "lives", "in", "the", "den"]
    hashes = [int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest(), "little") for w in text]
    windows = [hashes[i : i + 5] for i in range(len(text) - 4)]
    shingles = [mix(sum(x * base**i for i, x in enumerate(window)) + 5 & mask) for window in windows]
    wanted = [min(mix(s ^ mix(k * base & mask)) for s in shingles) >> 32 for k in range(1, HASHES + 1)]
    assert Hasher(5).signature(" ".join(text)).tolist() == wanted


def test_index_finds_the_first_that_is_near_and_no_other() -> None:
    h = Hasher(2)
    texts = [words(0, 200), words(1000, 1200), words(0, 199) + " x"]  # the third is near the first: J = 198 / 200
    known = np.stack([h.signature(t) for t in texts[:2]])
    index = Index(known, 0.8)
    assert index.find(h.signature(texts[2])) == 0
    assert index.find(h.signature(words(5000, 5200))) is None
    index.add(h.signature(words(5000, 5200)))
    assert index.find(h.signature(words(5001, 5201))) == 2  # numbers go on after the known ones
    assert index.find(h.signature(words(0, 100) + " " + words(7000, 7100))) is None  # J about 1/3


def test_bands_miss_almost_nothing_at_the_threshold() -> None:
    """By arithmetic (1 - 0.8^4)^32 of the pairs at J = 0.8 share no band; none of 200 pairs at J = 0.9 may be missed."""
    assert (1 - 0.8**ROWS) ** BANDS < 1e-7
    h = Hasher(1)
    for i in range(200):
        start = 2000 * i
        index = Index(h.signature(words(start, start + 950))[None], 0.7)
        assert index.find(h.signature(words(start + 50, start + 1000))) == 0  # J = 900 / 1000


def test_exact_duplicates_differ_in_case_and_spacing_only() -> None:
    assert key_of("The Fox\n is  red ") == key_of("the fox is red") != key_of("the fox is red.")
