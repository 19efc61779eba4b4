"""engine.gate: every rule at its level, worked by hand; and through real evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.gates import Gate, Limit, Verdict
from engine import gate
from engine.errors import StageError


def pair(mean: float, half: float, wins: float = 0.5) -> dict[str, Any]:
    """A comparison with an interval of +- half around a difference, and a win rate of +- 0.05."""
    return {"difference": {"mean": mean, "low": mean - half, "high": mean + half},
            "win_rate": {"mean": wins, "low": wins - 0.05, "high": wins + 0.05}}  # fmt: skip


def summary(against: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    looks = {"length": 20.0, "missing_eos": 0.02, "refusals": 0.05, "kl": {"mean": 3.0}}
    return {**looks, "against": {"v1": against} if against is not None else {}, **more}


def verdict(against: dict[str, Any], rules: Gate | None = None, **more: Any) -> dict[str, Any]:
    return gate.judge(rules or Gate(), summary(against, **more), summary(), "v1")


def words(found: dict[str, Any]) -> dict[str, str]:
    return {reason["rule"]: reason["action"] for reason in found["reasons"]}


def test_a_significantly_worse_version_is_rejected_and_one_that_may_be_equal_is_not() -> None:
    assert verdict({"gold": pair(0.10, 0.05)})["verdict"] == "accepted"
    assert verdict({"gold": pair(-0.04, 0.05)})["verdict"] == "accepted"  # -0.09 to 0.01: may be chance
    worse = verdict({"gold": pair(-0.06, 0.05)})
    assert (worse["verdict"], worse["accepted"], worse["by"]) == ("rejected", False, "gold")
    assert worse["reasons"][0]["text"] == "worse than v1 by gold: -0.060 (-0.110 to -0.010)"


def test_the_most_trusted_measure_has_the_say() -> None:
    worse, better = pair(-0.2, 0.1), pair(0.2, 0.1)
    assert verdict({"gold": better, "judge": worse, "score": worse})["accepted"]
    assert verdict({"judge": worse, "score": better})["by"] == "judge"
    assert not verdict({"judge": worse, "score": better})["accepted"]
    assert verdict({"score": worse})["by"] == "score" and not verdict({"score": worse})["accepted"]
    nobody = verdict({})
    assert (nobody["by"], nobody["verdict"], nobody["reasons"]) == ("nothing", "accepted", [])


def test_small_losses_never_move_the_best() -> None:
    assert verdict({"gold": pair(0.01, 0.05)})["leads"]
    behind = verdict({"gold": pair(-0.01, 0.05), "score": pair(0.5, 0.1)})
    assert behind["accepted"] and not behind["leads"]  # what comes next is judged against the same best
    assert not verdict({"gold": pair(0.2, 0.05)}, Gate(kl=Limit(at=1.0, action="reject")))["leads"]
    assert verdict({})["leads"]  # nobody to say which is better: the newest


def test_a_judge_model_below_gold_warns_or_rejects_as_the_config_says() -> None:
    against = {"gold": pair(0.0, 0.1), "judge": pair(-0.3, 0.1)}
    assert words(verdict(against)) == {"judge": "warn"} and verdict(against)["verdict"] == "warned"
    assert verdict(against)["accepted"]
    assert not verdict(against, Gate(judge="reject"))["accepted"]
    assert verdict(against, Gate(judge="off"))["verdict"] == "accepted"


def test_proxy_up_and_truth_not_is_told() -> None:
    up = pair(0.5, 0.1)
    assert words(verdict({"gold": pair(-0.01, 0.1), "score": up})) == {"parted": "warn"}
    assert words(verdict({"gold": pair(0.01, 0.1), "score": up})) == {}  # better on average: no parting yet
    assert words(verdict({"gold": pair(-0.01, 0.1), "score": pair(0.05, 0.1)})) == {}  # the proxy may be chance
    assert words(verdict({"score": up})) == {}  # nobody but the proxy has looked


def test_the_win_rate_rule_reads_the_upper_end_of_the_interval() -> None:
    rules = Gate(win_rate=Limit(at=0.5, action="reject"))
    assert verdict({"gold": pair(0.0, 0.1, wins=0.451)}, rules)["accepted"]  # up to 0.501
    assert not verdict({"gold": pair(0.0, 0.1, wins=0.449)}, rules)["accepted"]  # up to 0.499
    assert verdict({"gold": pair(0.0, 0.1, wins=0.1)}, Gate(win_rate=None))["verdict"] == "accepted"


@pytest.mark.parametrize(("rule", "level", "below", "above"), [
    ("kl", 10.0, {"kl": {"mean": 9.9}}, {"kl": {"mean": 10.1}}),
    ("longer", 1.5, {"length": 29.9}, {"length": 30.1}),  # the best has 20 tokens
    ("shorter", 0.5, {"length": 10.1}, {"length": 9.9}),
    ("missing_eos", 0.2, {"missing_eos": 0.19}, {"missing_eos": 0.21}),
    ("refusals", 0.1, {"refusals": 0.149}, {"refusals": 0.151}),  # the best refuses 0.05
])  # fmt: skip
def test_a_limit_acts_beyond_its_level_only(rule: str, level: float, below: Any, above: Any) -> None:
    even = {"gold": pair(0.0, 0.1)}
    for action, word in (("warn", "warned"), ("reject", "rejected")):
        rules = Gate(**{rule: Limit(at=level, action=action)})  # type: ignore[arg-type]
        assert verdict(even, rules, **below)["verdict"] == "accepted"
        found = verdict(even, rules, **above)
        assert found["verdict"] == word and words(found) == {rule: action}
    assert verdict(even, Gate(**{rule: None}), **above)["verdict"] == "accepted"


def test_what_nobody_measured_breaks_nothing() -> None:
    rules = Gate(kl=Limit(at=0.1, action="reject"), refusals=Limit(at=0.0, action="reject"))
    assert verdict({"gold": pair(0, 1)}, rules, kl=None, refusals=None)["accepted"]


def test_one_rule_that_rejects_is_enough_and_all_are_told() -> None:
    found = verdict({"gold": pair(-0.5, 0.1, wins=0.2), "score": pair(0.5, 0.1)}, length=60.0)
    assert words(found) == {"worse": "reject", "parted": "warn", "win_rate": "warn", "longer": "warn"}
    assert found["verdict"] == "rejected"


def test_a_version_that_was_not_compared_is_a_fault() -> None:
    with pytest.raises(StageError, match="version v3 to compare with is not among the earlier ones: v1"):
        gate.judge(Gate(), summary({}), summary(), "v3")


def test_the_stage_reads_summaries_and_writes_the_verdict(make_job: Any, tmp_path: Path) -> None:
    for name, found in (("v2", summary({"gold": pair(-0.5, 0.1)})), ("v1", summary())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(found))
    job = make_job("gate", Verdict(version="v2", best="v1"), evaluation=tmp_path / "v2", best=tmp_path / "v1")
    found = gate.run(job)
    assert not found["accepted"] and json.loads((job.out / "verdict.json").read_text()) == found
