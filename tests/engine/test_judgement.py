"""Measures of a reward model's gaps, worked by hand."""

import numpy as np
import pytest

from engine.judgement import accuracy, agreement, drift, grouped, length_bias, reliability, style_bias, unsafe


def test_wilson_interval_by_hand() -> None:
    """8 of 10: centre (8 + 1.92073) / 13.84146 = 0.71674, half 1.959964 / 13.84146 * sqrt(8 * 2 / 10 + 0.960365) = 0.22657."""
    found = accuracy(np.array([1.0] * 8 + [-1.0, 0.0]))  # a tie is wrong
    assert found["accuracy"] == 0.8 and found["count"] == 10
    assert (found["low"], found["high"]) == pytest.approx((0.49016, 0.94331), abs=1e-4)
    assert accuracy(np.array([1.0] * 5))["low"] < 0.6 and accuracy(np.array([1.0] * 5))["high"] == 1.0


def test_groups_leave_out_pairs_without_a_name() -> None:
    found = grouped(np.array([1.0, -1.0, 1.0]), ["a", None, "a"])
    assert list(found) == ["a"] and found["a"]["count"] == 2 and found["a"]["accuracy"] == 1.0


def test_calibration_error_by_hand() -> None:
    """Four gaps of +-ln 9 predict 0.9; three of four are right: error 0.15."""
    gap = float(np.log(9.0))
    assert reliability(np.array([gap, gap, gap, -gap]))["error"] == pytest.approx(0.15)


def test_length_bias_by_hand() -> None:
    """Score = 2 a token: slope 2, correlation 1, nothing is left; without length differences nothing is said."""
    longer = np.array([3.0, -1.0, 2.0, -2.0])
    found = length_bias(2 * longer, longer, np.array([10.0, 10, 40, 10]))
    assert (found["slope"], found["correlation"], found["picks_longer"]) == pytest.approx((2.0, 1.0, 1.0))
    assert found["longer_is_better"] == found["rule"] == 0.5 and found["without_slope"]["accuracy"] == 0.0
    assert found["matched"]["count"] == 2  # one token of ten, two of forty
    none = length_bias(np.array([1.0, -1.0]), np.zeros(2), np.ones(2))
    assert none["slope"] == none["correlation"] == 0.0 and none["rule"] == 0.5 and none["matched"]["count"] == 2
    assert length_bias(np.array([1.0, 1.0, 1.0]), np.array([-1.0, -2.0, 3.0]), np.ones(3))["rule"] == pytest.approx(
        2 / 3
    )


def test_style_is_counted_where_it_differs() -> None:
    found = style_bias(np.array([1.0, -1.0, 1.0]), ["yes!", "no!", "so"], ["yes", "no", "so"])
    assert found["exclamations"] == {"pairs": 2, "model": 0.5, "annotators": 1.0} and "list_items" not in found


def test_two_models_alike() -> None:
    found = agreement(np.array([1.0, 1.0, -1.0, -1.0]), np.array([2.0, -2.0, -2.0, 2.0]), ["h", "h", "s", "s"])
    assert (
        found["alike"] == 0.5
        and found["by_kind"]["s"]["accuracy"] == 0.0
        and found["other_by_kind"]["h"]["accuracy"] == 0.5
    )


def test_unsafe_recall_at_a_threshold() -> None:
    found = unsafe([-1.0, 0.5, -0.2, 2.0], [False, False, True, True], 0.0)
    assert (found["recall"], found["false_alarms"], found["unsafe"]) == (0.5, 0.5, 2)
    assert found["recall_high"] == pytest.approx(0.905, abs=1e-3)  # Wilson, 1 of 2
    assert unsafe([1.0], [True], 0.0)["recall"] is None


def test_drift_compares_ranks_and_orders() -> None:
    found = drift([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 80.0], np.array([1.0, -1.0]), np.array([3.0, 3.0]))
    assert found["rank_correlation"] == pytest.approx(1.0) and found["flipped"] == 0.5
    assert drift([1.0, 1.0], [1.0, 2.0], np.ones(1), np.ones(1))["rank_correlation"] is None
