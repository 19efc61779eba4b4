"""How claims are judged, on numbers worked by hand; that every claim can be laid out."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.claims.__main__ import claims, lines
from benchmarks.claims.judges import _right
from benchmarks.claims.lab import Effect, Lab, difference_effect, mean_effect, pooled, rank_effect
from storage import open_store


def test_verdicts_follow_the_interval():
    told = lambda low, high: Effect((low + high) / 2, np.linspace(low, high, 1001), 9).verdict(0.1)
    assert told(0.01, 0.5) == "reproduced"
    assert told(-0.3, 0.09) == "not reproduced" and told(-0.3, -0.1) == "not reproduced"
    assert told(-0.1, 0.3) == "not decided"


def test_power_is_that_of_a_two_sided_test_at_five_per_cent():
    effect = mean_effect([0.0, 1.0] * 200)  # standard error 0.5 / 20 = 0.025
    assert effect.error == pytest.approx(0.025, rel=0.05)
    assert effect.power(1e-9) == pytest.approx(0.05, abs=0.001)
    assert effect.power(2.8016 * effect.error) == pytest.approx(0.8, abs=0.001)


def test_an_independent_difference_adds_the_variances():
    effect = difference_effect([0.0, 2.0] * 200, [0.0, 1.0] * 200)
    assert effect.value == pytest.approx(0.5)
    assert effect.error == pytest.approx((0.05**2 + 0.025**2) ** 0.5, rel=0.05)


def test_seeds_that_differ_widen_the_interval():
    alike, apart = [[mean_effect(mean + np.array([-1.0, 1.0] * 200)) for mean in means] for means in ((1, 1), (0, 2))]
    one, two = pooled(alike), pooled(apart)
    assert one.value == two.value == 1.0 and one.count == 800
    assert two.low < 0.1 and two.high > 1.9, "two seeds: half of the samples are of one seed alone"
    assert one.high - one.low < 0.3
    assert pooled(alike[:1]) is alike[0]


def test_a_rank_correlation_is_over_things_and_its_interval_over_prompts():
    right = np.tile([[0.1], [0.2], [0.3]], 50)
    assert rank_effect(right, right).value == 1.0 and rank_effect(right, right).low == 1.0
    assert rank_effect(right, -right).value == -1.0
    noisy = rank_effect(right, np.random.Generator(np.random.PCG64(5)).normal(size=(3, 40)))
    assert noisy.low < 0 < noisy.high


def test_pairs_too_close_in_gold_have_no_right_order():
    assert _right([1.0, 0.95, 0.0], [3.0, 9.0, 5.0]) == 0.5  # first against third wrong, second against third right
    assert _right([1.0, 0.0], [2.0, 2.0]) == 0.5
    assert _right([0.5, 0.55], [1.0, 2.0]) is None


def test_a_claim_of_parts_has_a_line_each_and_one_that_was_not_run_says_so():
    claim = SimpleNamespace(TEXT="a beats b", SOURCE="someone", MATTERS=0.02, UNIT="gold")
    effect = mean_effect([0.1, 0.3], "a 0.2")
    rows = lines(claim, [{"early": effect, "late": effect}])
    assert [row.split("|")[1].strip() for row in rows] == ["a beats b (someone): early", "a beats b (someone): late"]
    assert "reproduced" in rows[0] and "+0.200" in rows[0]
    assert lines(claim, []) == ["| a beats b (someone) | - | 0.02 gold | - | - | - | not run | - |"]


def test_every_claim_says_what_would_matter_and_lays_out_its_stages(tmp_path):
    lab = Lab(open_store(tmp_path / "store"))
    for name in claims():
        claim = importlib.import_module(f"benchmarks.claims.{name}")
        assert claim.TEXT and claim.SOURCE and claim.MATTERS > 0 and claim.UNIT
        assert claim.stages(lab), name
    labels = [artifact.ref.key for artifact in lab.run.artifacts.values()]
    assert len(set(labels)) > 150
