import random
from typing import Any

import pytest

from configs.recipes import Tripwires
from engine.tripwires import _RULES, start_of, violations
from report.archive import Archive
from report.evidence import Evidence
from report.training import curve, trainings, tripwires
from tests.report.conftest import Campaign

WATCHED = {"perplexity": "perplexity", "long": "response_length", "kl": "kl", "short": "response_length", "mute": "mute",
           "repetition": "distinct_2", "loops": "loops", "entropy": "entropy", "reward": "score_p95", "clip": "clip_fraction",
           "critic": "explained_variance", "endless": "missing_eos"}  # fmt: skip


def test_no_rule_of_the_engine_is_forgotten() -> None:
    assert {name for name, _, _ in _RULES} - {"runaway"} == set(WATCHED)  # runaway needs two metrics at once


@pytest.mark.parametrize("rule", sorted(WATCHED))
def test_the_drawn_line_is_where_the_engine_begins_to_object(rule: str) -> None:
    rules, rng = Tripwires(), random.Random(3)
    metric = WATCHED[rule]
    first: dict[str, Any] = {name: rng.uniform(0.2, 0.8) for name in WATCHED.values()}
    first |= {"step": 0, "policy_steps": 0, "score_std": 0.4, "missing_eos": 0.0}
    level = next(level for level, text in tripwires(metric, [first], rules.model_dump()) if text == f"tripwire: {rule}")
    start = start_of([first])
    broken = []
    for value in (level - 1e-6, level + 1e-6):
        found = violations({**first, metric: value}, start, rules)
        broken.append(rule in {alarm.rule for alarm in found})
    assert sorted(broken) == [False, True], (metric, level)


def test_every_finished_training_stage_has_its_curves(finished: Campaign) -> None:
    found = {t.label: t for t in trainings(Evidence(finished.view, Archive(finished.store)))}
    assert list(found) == ["base", "v0", "r1-helpfulness", "r1-safety", "v1", "v2"]
    assert found["base"].steps == 400 and [c.name for c in found["base"].curves] == ["loss", "learning_rate"]
    loss = found["base"].curves[0]
    assert loss.last == "0.1" and loss.svg.count(",") < 400
    assert "tripwire: kl" in next(c.svg for c in found["v2"].curves if c.name == "kl")
    assert "tripwire" not in "".join(c.svg for c in found["v1"].curves)
    assert found["v2"].alarms == [
        "step 9: kl: twice the budget",
        "step 10: ladder: lower learning rate, back to iteration 0",
        "step 15: ladder: stop, the run ended",
    ]


def test_a_limit_too_far_to_draw_is_named_below_its_curve() -> None:
    rows = [{"step": step, "kl": 0.1 * step} for step in (1, 2)]
    drawn = curve("v5", "kl", rows, {"kl_budget": 20.0})
    assert "tripwire" not in drawn.svg and drawn.beyond == "tripwire: kl at 40"
    near = curve("v5", "kl", rows, {"kl_budget": 0.15})
    assert "tripwire: kl" in near.svg and near.beyond == ""


def test_a_rule_that_an_older_run_did_not_have_is_not_drawn() -> None:
    assert tripwires("kl", [{"step": 1, "kl": 0.1}], {}) == []
