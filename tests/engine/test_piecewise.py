"""engine.piecewise: which of two scores decides (trap T24, METHODS 4.1)."""

import math

import pytest

from engine.piecewise import combine

THRESHOLD = math.log(0.15 / 0.85)  # -1.7346: 0.15 as a raw score


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("tagged", "safe", "helpful", "by_safety"),
    [(False, 0.9, 0.8, False), (False, 0.14, 0.8, True), (True, 0.9, 0.8, True)],
)
def test_golden_branches(tagged: bool, safe: float, helpful: float, by_safety: bool) -> None:
    branches, scores = combine([logit(helpful)], [logit(safe)], [tagged], THRESHOLD)
    assert scores[0] == pytest.approx(logit(safe if by_safety else helpful), rel=1e-6)
    assert branches == [0 if by_safety and not tagged else 1]


def test_the_threshold_itself_belongs_to_helpfulness() -> None:
    threshold = -1.75  # exact in fp32
    branches, scores = combine([7.0] * 3, [threshold - 1e-4, threshold, threshold + 1e-4], [False] * 3, threshold)
    assert branches == [0, 1, 1] and scores[1:] == [7.0, 7.0]


def test_without_safety_scores_helpfulness_decides() -> None:
    assert combine([1.0, -20.0], [None, None], [True, False], THRESHOLD) == ([1, 1], [1.0, -20.0])


def test_extreme_raw_scores_stay_finite() -> None:
    """T23: no sigmoid in between, so nothing saturates."""
    branches, scores = combine([20.0, 40.0], [90.0, -90.0], [False, False], THRESHOLD)
    assert (branches, scores) == ([1, 0], [20.0, -90.0])
