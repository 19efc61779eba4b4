"""Planted collapses of real online runs are named within the stated number of iterations; healthy runs raise no alarm.

Stated delay: 20 iterations from the first update, at rates at which these runs collapse. 60 healthy runs without an alarm
bound the rate of false alarms by 4.9 % a run (95 %, 1 - 0.05 ** (1 / 60)). The table: `python -m benchmarks.collapses`.
"""

import json
from pathlib import Path

import pytest

from benchmarks.collapses import (
    BROKEN_AT,
    COLLAPSES,
    DELAY,
    Cast,
    breaking,
    false_alarm_bound,
    healthy,
    mild,
    paid_for,
    taught,
    unheld,
)
from configs.recipes import Tripwires
from engine import online
from engine.tripwires import start_of, violations

HEALTHY = 60
WATCHED = ("response_length", "missing_eos", "distinct_2", "loops", "mute", "score", "kl", "perplexity", "entropy")


def test_the_bound_of_false_alarms() -> None:
    assert false_alarm_bound(60) == pytest.approx(0.0487, abs=1e-4)
    assert (1 - false_alarm_bound(7)) ** 7 == pytest.approx(
        0.05
    )  # so many quiet runs have a chance of 5 % at that rate


@pytest.fixture(scope="module")
def who(policy: Path, rewards: list[Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Cast:
    """A policy that has learned to answer and to end, and who judges it."""
    rows, folder = tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("talker")
    taught(policy, folder, rows)
    return Cast(folder, rewards[0], prompts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow_short if name == "length exploit" else ()) for name in COLLAPSES]
)
def test_a_planted_collapse_is_named_in_time(who: Cast, tmp_path: Path, name: str) -> None:
    score, rules = COLLAPSES[name]
    job = who.job(unheld(), tmp_path)
    summary = online.run(job, paid_for(score))
    for metric in WATCHED:
        print(metric, [round(row[metric], 2) for row in job.rows])
    print([(a["rule"], a["step"]) for a in summary["alarms"]])
    assert {alarm["rule"] for alarm in summary["alarms"] if alarm["step"] <= DELAY} & rules


@pytest.mark.slow
@pytest.mark.slow_short
def test_a_loss_that_is_not_finite_is_named_at_once_with_the_evidence(who: Cast, tmp_path: Path) -> None:
    recipe = unheld(config={"reward_scaling": "none"}, iterations=8, tripwires=Tripwires(on_alarm="stop"))
    summary = online.run(who.job(recipe, tmp_path), breaking(BROKEN_AT))
    assert [(a["rule"], a["step"]) for a in summary["alarms"]] == [("nonfinite", BROKEN_AT)]
    assert summary["stopped"] and len(json.loads((tmp_path / f"alarm-{BROKEN_AT:05d}.json").read_text())["rows"]) == 32


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSES)
def test_the_ladder_leaves_a_collapse_with_a_sound_policy(who: Cast, tmp_path: Path, name: str) -> None:
    """Whatever the rungs did, the published weights are not collapsed: no rule holds for what they answer."""
    score, _ = COLLAPSES[name]
    job = who.job(unheld(tripwires=Tripwires(on_alarm="ladder", anchor=2)), tmp_path)
    summary = online.run(job, paid_for(score))
    assert (
        summary["ladder"]
        and [e["rung"] for e in summary["ladder"]] == list(Tripwires().ladder)[: len(summary["ladder"])]
    )
    after = Cast(tmp_path, who.critic, who.prompts)
    # compared with the start: one batch of the published policy, judged by the curve's own rules
    check = after.job(unheld(iterations=1, seed=1), tmp_path / "after")
    online.run(check, paid_for(score))
    start = start_of(job.rows)
    last = {**check.rows[0], "policy_steps": 1.0}
    broken = {alarm.rule for alarm in violations(last, start, Tripwires())}
    assert not broken & {"repetition", "loops", "mute", "short", "runaway", "nonfinite"}, broken


@pytest.mark.slow
def test_healthy_runs_raise_no_alarm(who: Cast, tmp_path: Path) -> None:
    """Runs that learn (a mild rate, the KL in the reward) in 10 iterations of 32 rollouts each."""
    rose, alarms = 0, {}
    for seed in range(HEALTHY):
        summary = online.run(who.job(healthy(seed), tmp_path / f"seed-{seed}"), paid_for(mild))
        rose += summary["score"] > summary["score_first"]
        if summary["alarms"]:
            alarms[seed] = [(a["rule"], a["step"], a["text"]) for a in summary["alarms"]]
    assert alarms == {}
    assert rose > 0.75 * HEALTHY  # they are runs that learn, not runs that stand still
