"""engine.statistics: numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest

from engine import statistics as s


def test_estimate_holds_the_mean_and_shrinks_with_the_sample() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    few, many = rng.normal(2.0, 1.0, 50), rng.normal(2.0, 1.0, 5000)
    narrow, wide = (s.estimate(list(v), resamples=2000, seed=0) for v in (many, few))
    assert wide.low < wide.mean < wide.high
    # the standard error of 50 normals is 1 / sqrt(50) = 0.141, so the interval is about 4 * 0.141 wide
    assert wide.high - wide.low == pytest.approx(3.92 * few.std() / math.sqrt(50), rel=0.1)
    assert narrow.high - narrow.low < 0.2 * (wide.high - wide.low)


def test_estimate_is_the_same_for_the_same_seed_and_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 1.0, 5.0, 2.5]
    first = s.estimate(values, resamples=100, seed=3)
    assert s.estimate(values, resamples=100, seed=3) == first
    assert s.estimate(values, resamples=100, seed=4) != first
    monkeypatch.setattr(s, "CHUNK", 8)
    assert s.estimate(values, resamples=100, seed=3) == first


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_estimate_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        s.estimate(values, resamples=10, seed=0)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    hits = 0
    for trial in range(200):
        found = s.estimate(list(rng.normal(0.0, 1.0, 100)), resamples=300, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 180 <= hits <= 199  # 0.95 +- three standard errors, less the bootstrap's own shortfall


def test_paired_sees_what_unpaired_cannot() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    b = rng.normal(0.0, 10.0, 200)
    a = b + 0.2 + rng.normal(0.0, 0.1, 200)  # a small gain on prompts of very different difficulty
    gain = s.paired(list(a), list(b), resamples=500, seed=0)
    assert gain.low > 0.15 and gain.high < 0.25
    with pytest.raises(ValueError, match="same prompts"):
        s.paired([1.0], [1.0, 2.0], resamples=10, seed=0)


def test_win_rate_counts_a_tie_as_half() -> None:
    found = s.win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0], resamples=200, seed=0)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.rate.mean == (1 + 0.5 + 1 + 0) / 4
    assert found.decided == 2 / 3
    near = s.win_rate([1.0, 2.05], [1.04, 2.0], resamples=50, seed=0, tie=0.06)
    assert (near.ties, near.rate.mean) == (2, 0.5)
    assert math.isnan(near.decided)


def test_spearman_by_hand() -> None:
    assert s.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert s.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # ranks (1, 2, 3, 4) and (1, 2.5, 2.5, 4): cov 4.5, variances 5 and 4.5
    assert s.spearman([1, 2, 3, 4], [1, 2, 2, 9]) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert math.isnan(s.spearman([1, 2], [3, 3]))


def test_best_of_n_equals_enumeration() -> None:
    proxy, gold = [0.3, -1.0, 2.0, 0.5, 4.0, 1.0], [5.0, 1.0, 2.0, 9.0, 3.0, 4.0]
    for n in range(1, 7):
        sets = list(itertools.combinations(range(6), n))
        brute = sum(gold[max(c, key=lambda i: proxy[i])] for c in sets) / len(sets)
        assert s.best_of_n(proxy, gold, n) == pytest.approx(brute)


def test_best_of_n_shares_ties() -> None:
    assert s.best_of_n([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 5.0], 3) == pytest.approx(2.0)
    # {a, b} tie above c: pairs ab, ac, bc -> mean(1, 3), 1, 3 on average
    assert s.best_of_n([2.0, 2.0, 0.0], [1.0, 3.0, 100.0], 2) == pytest.approx((2 + 1 + 3) / 3)
    with pytest.raises(ValueError, match="best of 3 from 2"):
        s.best_of_n([1.0, 2.0], [1.0, 2.0], 3)


def test_diversity() -> None:
    assert s.distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4  # 12 23 12 24
    assert s.distinct([[1]], 2) == 0.0
    assert s.repetition([7, 7, 7, 7], 2) == pytest.approx(2 / 3)  # 77 77 77, one new
    assert s.repetition([1, 2, 3, 4], 2) == 0.0


def test_self_bleu_of_equal_and_of_disjoint_texts() -> None:  # T83
    assert s.self_bleu(["a b c d e", "a b c d e"]) == pytest.approx(1.0)
    assert s.self_bleu(["a b c d e", "v w x y z"]) == 0.0
    assert 0 < s.self_bleu(["a b c d e", "a b c x y"]) < 1
    assert math.isnan(s.self_bleu(["only one"]))


def test_bleu_by_hand() -> None:
    """the cat sat on, against the cat sat down here (5 words): 3/4 of the words, (2+1)/(3+1), (1+1)/(2+1), (0+1)/(1+1) of the
    longer n-grams; the nearest reference has 5 words: brevity exp(1 - 5/4). A word counts as often as a reference has it."""
    wanted = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(-0.25)
    assert s._bleu(["the", "cat", "sat", "on"], [["the", "cat", "sat", "down", "here"]], 4) == pytest.approx(wanted)
    wanted = (1 / 3 * 1 / 3 * 1 / 2 * 1 / 1) ** 0.25
    assert s._bleu(["the", "the", "the"], [["the", "cat"]], 4) == pytest.approx(wanted)
