"""Every planted collapse rings its own rule within the stated number of iterations; a healthy run rings none."""

import math

import pytest

from configs.recipes import Tripwires
from engine.tripwires import check, start_of, violations

HEALTHY = {
    "policy_steps": 0.0,
    "perplexity": 6.0,
    "entropy": 1.5,
    "response_length": 12.0,
    "missing_eos": 0.05,
    "mute": 0.0,
    "distinct_2": 0.95,
    "loops": 0.01,
    "kl": 0.0,
    "score": 0.0,
    "score_std": 1.0,
    "score_p95": 1.5,
    "clip_fraction": 0.1,
    "explained_variance": 0.3,
}
RULES = Tripwires()

COLLAPSES = {
    # what the rows look like once the policy has gone wrong, and the rule that has to name it
    "perplexity": {"perplexity": 1.02},
    "runaway": {"response_length": 24.0, "missing_eos": 0.4},
    "endless": {"missing_eos": 0.6},
    "long": {"response_length": 37.0},
    "kl": {"kl": 45.0},
    "short": {"response_length": 2.0},
    "mute": {"mute": 0.9},
    "repetition": {"distinct_2": 0.2},
    "loops": {"loops": 0.8},
    "entropy": {"entropy": 0.01},
    "reward": {"score": 2.0, "score_p95": 7.6},  # one response in ten is paid for what no reward model was tried on
    "clip": {"clip_fraction": 0.9},
    "critic": {"explained_variance": -5.0},
}


def rows_of(*changes: dict[str, float]) -> list[dict[str, float]]:
    """A curve: two healthy rows of the start policy, then one row per change."""
    start = [{**HEALTHY, "step": float(i)} for i in (1, 2)]
    return start + [{**HEALTHY, **c, "policy_steps": i + 1.0, "step": i + 3.0} for i, c in enumerate(changes)]


@pytest.mark.parametrize("rule", COLLAPSES)
def test_a_collapse_is_named_after_patience_iterations_and_not_before(rule):
    bad = COLLAPSES[rule]
    assert check(rows_of(bad), RULES) == [], "one bad iteration is noise"
    alarms = check(rows_of(bad, bad), RULES)
    assert [a.rule for a in alarms] == [rule]
    assert alarms[0].step == 4


@pytest.mark.parametrize("rule", COLLAPSES)
def test_a_recovered_iteration_starts_the_patience_again(rule):
    bad = COLLAPSES[rule]
    assert check(rows_of(bad, {}, bad), RULES) == []


def test_a_healthy_drift_raises_nothing():
    drift = [
        {
            "kl": 0.4 * i,
            "perplexity": 6.0 - 0.1 * i,
            "response_length": 12.0 + 0.2 * i,
            "score": 0.15 * i,
            "entropy": 1.5 - 0.03 * i,
        }
        for i in range(20)
    ]
    assert all(check(rows_of(*drift[:n]), RULES) == [] for n in range(1, 21))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_an_alarm_at_once(value):
    alarms = check(rows_of({"policy_loss": value}), RULES)
    assert [a.rule for a in alarms] == ["nonfinite"]
    assert "policy_loss" in alarms[0].text


def test_the_start_is_every_row_made_before_the_policy_moved():
    rows = rows_of({"response_length": 100.0})
    rows[0]["response_length"], rows[1]["response_length"] = 10.0, 20.0
    assert start_of(rows)["response_length"] == 15.0


def test_a_method_without_a_critic_breaks_no_critic_rule():
    rows = [{k: v for k, v in row.items() if k != "explained_variance"} for row in rows_of({}, {})]
    assert check(rows, RULES) == []


def test_the_limits_are_those_of_the_config():
    row = rows_of({"kl": 45.0})[-1]
    start = start_of(rows_of())
    assert [a.rule for a in violations(row, start, RULES)] == ["kl"]
    assert violations(row, start, Tripwires(kl_budget=23.0)) == []


def test_no_rows_are_no_alarm():
    assert check([], RULES) == []


def test_perplexity_is_judged_by_its_nats_at_either_scale():
    """A start of 14 may halve in a run that learns; a start of 1.25 cannot halve at all, and falls to 1.25 ** 0.25 = 1.057."""
    for start, sound, bad in ((14.0, 5.7, 1.9), (1.25, 1.1, 1.04)):
        rows = [{**row, "perplexity": start} for row in rows_of()]
        row = {**rows_of({})[-1], "perplexity": sound}
        assert violations(row, start_of(rows), RULES) == []
        assert [a.rule for a in violations({**row, "perplexity": bad}, start_of(rows), RULES)] == ["perplexity"]


def test_a_critic_in_its_warm_up_breaks_no_rule():
    row = {**rows_of({"explained_variance": -5.0})[-1], "warmup": 1.0}
    assert violations(row, start_of(rows_of()), RULES) == []
    assert [a.rule for a in violations({**row, "warmup": 0.0}, start_of(rows_of()), RULES)] == ["critic"]
