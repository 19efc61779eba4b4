"""engine.ladder: an alarm sends the run back to its anchor, one rung further; killed anywhere, it ends with the same bytes."""

import importlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from online_runs import FAST, finish, prefers, recipe, result
from safetensors.torch import load_file, save_file
from test_online import Dying, Killed

import methods
from configs.recipes import Optimizer, Tripwires
from configs.runtime import Runtime
from engine import online
from engine.errors import StageError
from engine.ladder import Anchors, adjust, check_ladder, next_rung, raised
from engine.sharding import Plain
from engine.tripwires import check, start_of
from engine.updates import Learner
from methods import ppo
from storage.rows import read_rows

RUNGS = ("lower_learning_rate", "raise_kl", "previous_version", "stop")
ALWAYS = Tripwires(on_alarm="ladder", kl_budget=1e-9, patience=1, anchor=1)  # any KL at all is an alarm


def learner(rate: float = 0.1) -> Learner:
    torch.manual_seed(0)
    chosen = recipe(tripwires=Tripwires(on_alarm="ladder"))
    recipe_of = Optimizer(learning_rate=rate, schedule="constant", warmup=0.0, min_warmup_steps=0)
    policy = Plain(torch.nn.Linear(3, 2), recipe_of, 100)
    chosen = chosen.model_copy(update={"optimizer": recipe_of})
    nothing: Any = None  # no batch is packed here
    return Learner(ppo, ppo.Config(kl_coef=0.02), chosen, Runtime(), policy, None, 0, nothing, ())


def steps(plain: Plain, count: int) -> dict[str, torch.Tensor]:
    for i in range(count):
        plain.backward(((plain.model(torch.ones(1, 3)) - i) ** 2).sum())
        plain.step()
    return {name: tensor.clone() for name, tensor in plain._tensors().items()}


def test_the_anchor_brings_back_weights_moments_and_what_was_counted(tmp_path: Path) -> None:
    one = learner()
    anchors = Anchors(tmp_path, one, {"iteration": 0})
    steps(one.policy, 3)
    anchors.propose(one, {"iteration": 3})
    anchors.accept()
    on = steps(one.policy, 4)
    one.policy.backward(one.policy.model(torch.ones(1, 3)).sum() * 1e6)  # a gradient that must not live on
    assert anchors.restore(one) == {"iteration": 3} and one.policy.updates == 3
    again = steps(one.policy, 4)
    assert all(torch.equal(on[name], again[name]) for name in on)
    anchors.propose(one, {"iteration": 7})  # never accepted
    assert anchors.restore(one) == {"iteration": 3}
    anchors.rewind()
    assert anchors.restore(one) == {"iteration": 0} and one.policy.updates == 0
    fresh = learner().policy
    assert all(torch.equal(t, fresh._tensors()[name]) for name, t in one.policy._tensors().items())


def test_an_anchor_goes_through_a_save_point(tmp_path: Path) -> None:
    one, point = learner(), tmp_path / "point"
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), point.mkdir()
    anchors = Anchors(tmp_path / "a", one, {"iteration": 0})
    kept = steps(one.policy, 2)
    anchors.propose(one, {"iteration": 2})
    anchors.accept()
    anchors.save(point)
    other = learner()
    second = Anchors(tmp_path / "b", other, {"iteration": 0})
    second.load(point)
    assert second.restore(other) == {"iteration": 2}
    assert all(torch.equal(t, kept[name]) for name, t in other.policy._tensors().items())


def test_rungs_change_rate_and_coefficient_once_and_keep_the_changes() -> None:
    one, config = learner(rate=0.1), ppo.Config(kl_coef=0.02)
    after = adjust(one, config, ["lower_learning_rate"])
    assert after.policy.rate == pytest.approx(0.1 * 0.3) and after.config.kl_coef == 0.02
    for _ in range(2):  # again changes nothing more: a resumed run calls it anew
        after = adjust(after, config, ["lower_learning_rate", "raise_kl", "previous_version"])
        assert after.policy.rate == pytest.approx(0.03) and after.config.kl_coef == pytest.approx(0.08)
    assert raised(0.0, Tripwires()) == 0.05  # nothing times four is nothing


def test_every_rung_comes_once_and_then_the_end() -> None:
    rules, taken = Tripwires(on_alarm="ladder"), []
    for wanted in (*RUNGS, "stop"):
        assert next_rung(rules, taken) == wanted
        taken.append(wanted)
    short = Tripwires(on_alarm="ladder", ladder=("raise_kl",))
    assert next_rung(short, ["raise_kl"]) == "stop"
    assert next_rung(Tripwires(on_alarm="stop"), []) == "stop"


@pytest.mark.parametrize("ladder", [(), ("stop", "raise_kl"), ("raise_kl", "raise_kl")])
def test_a_ladder_without_an_order_is_refused(ladder: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="want at least one rung, each once, and stop only at the end"):
        Tripwires(ladder=ladder)  # type: ignore[arg-type]


def test_a_rung_that_would_change_nothing_is_refused() -> None:
    @dataclass(frozen=True)
    class NoKl:
        clip: float = 0.2

    with pytest.raises(StageError, match="has raise_kl, but method rank has no kl_coef: leave that rung out"):
        check_ladder(Tripwires(on_alarm="ladder"), "rank", NoKl())
    check_ladder(Tripwires(on_alarm="ladder", ladder=("lower_learning_rate", "stop")), "rank", NoKl())
    check_ladder(Tripwires(on_alarm="record"), "rank", NoKl())


def test_rows_before_the_run_went_back_do_not_count_towards_patience() -> None:
    start = {"step": 1.0, "policy_steps": 0.0, "kl": 0.0}
    bad = [{"step": step, "policy_steps": 5.0, "kl": 99.0} for step in (2.0, 3.0)]
    rules = Tripwires(patience=2)
    assert [a.rule for a in check([start, *bad], rules)] == ["kl"]
    assert check([start, *bad], rules, since=2) == []


def test_a_row_that_lost_its_numbers_is_no_start_and_an_alarm_at_once() -> None:
    whole = {"step": 1.0, "policy_steps": 0.0, "kl": 0.5}
    broken = {"step": 2.0, "policy_steps": 0.0, "nonfinite": 2.0}
    assert start_of([broken, whole])["kl"] == 0.5
    assert [a.rule for a in check([whole, broken], Tripwires(patience=5))] == ["nonfinite"]


@pytest.mark.parametrize(("method", "more"), [("ppo", {}), ("rloo", {"k": 4, "iterations": 12})])
def test_the_ladder_is_taken_rung_by_rung(start: Any, method: str, more: dict[str, Any]) -> None:
    config = {"kl_coef": 0.02} | ({"kl_control": "fixed"} if method == "ppo" else {})
    rate = FAST.model_copy(update={"schedule": "constant", "warmup": 0.0})
    job = start(recipe(method=method, config=config, tripwires=ALWAYS, optimizer=rate, warmup_batches=0, **more))
    summary = finish(job)
    assert [entry["rung"] for entry in summary["ladder"]] == list(RUNGS)
    assert [entry["kl_coef"] for entry in summary["ladder"]] == pytest.approx([0.02, 0.08, 0.08, 0.08])
    rates = [entry["learning_rate"] for entry in summary["ladder"]]
    assert rates == pytest.approx([6e-4] * 4)
    first = summary["ladder"][0]["step"]
    assert [row["policy_rate"] for row in job.rows] == pytest.approx([2e-3] * first + [6e-4] * (len(job.rows) - first))
    back = job.rows[summary["ladder"][2]["step"]]  # the first batch after previous_version: the start policy itself
    assert back["policy_steps"] == 0 and back["kl"] == pytest.approx(0.0, abs=1e-5)
    assert summary["stopped"] and summary["published_iteration"] == summary["ladder"][-1]["back_to"]
    for entry in summary["ladder"]:
        found = json.loads((job.out / f"alarm-{entry['step']:05d}.json").read_text())
        assert [alarm["rule"] for alarm in found["alarms"]] == entry["rules"] and len(found["rows"]) == 16
    assert [row["step"] for row in job.rows] == list(range(1, len(job.rows) + 1))  # nothing was overwritten


def test_the_coefficient_in_force_is_that_of_the_curve(start: Any) -> None:
    """PPO keeps its coefficient in its state, which the anchor brings back: it must not undo the rung."""
    rules = ALWAYS.model_copy(update={"ladder": ("raise_kl", "lower_learning_rate", "previous_version")})
    job = start(recipe(config={"kl_coef": 0.02}, tripwires=rules, warmup_batches=0))
    summary = finish(job)
    first = summary["ladder"][0]["step"]
    coefficients = [row["kl_coef"] for row in job.rows]
    assert coefficients == pytest.approx([0.02] * first + [0.08] * (len(job.rows) - first))
    assert [entry["rung"] for entry in summary["ladder"]] == [*rules.ladder, "stop"]


@pytest.mark.parametrize("warmup", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_ladder_the_bytes_are_the_same(start: Any, save_points: Any, warmup: int) -> None:
    """Kills before the first alarm, between rungs and after the last one; the curve, the evidence and the weights agree."""
    rules = ALWAYS.model_copy(update={"kl_budget": 0.04, "anchor": 2})
    chosen = recipe(iterations=6, tripwires=rules, warmup_batches=warmup)
    whole = start(chosen, out="whole")
    summary = finish(whole)
    assert len(summary["ladder"]) >= 3
    for n in range(len(whole.rows) // 2):
        saves = Dying(save_points(), 2)
        try:
            online.run(start(chosen, out=f"dead-{n}", saves=saves, runtime={"save_steps": 1}))
        except Killed:
            continue
        break
    job = start(chosen, out="finished", saves=save_points(), runtime={"save_steps": 1000})
    assert finish(job) == summary
    assert result(job.out) == result(whole.out)


def test_numbers_that_are_not_finite_lead_down_the_ladder_with_the_evidence(start: Any, save_points: Any) -> None:
    """A reward beyond fp32 in one batch: the loss is not finite, the run goes back and comes to its end."""
    batch = [0]

    def judge(rows: Sequence[Any], pairs: Sequence[Any], parts: Any) -> dict[str, list[float | None]]:
        batch[0] += 1
        size = 1e30 if batch[0] == 3 else 1.0
        return {"helpfulness": [size * (i % 2) for i in range(len(pairs))], "safety": [None] * len(pairs)}

    rules = Tripwires(on_alarm="ladder", anchor=1, kl_budget=1e3, min_explained=-1e9)
    config = {"reward_scaling": "none", "missing_eos": "none"}
    job = start(recipe(warmup_batches=0, config=config, tripwires=rules))
    summary = finish(job, judge)
    assert [a["rule"] for a in summary["alarms"]] == ["nonfinite"] and "not finite" in summary["alarms"][0]["text"]
    assert [entry["rung"] for entry in summary["ladder"]] == ["lower_learning_rate"]
    assert not summary["stopped"] and summary["iterations"] == 4
    evidence = json.loads((job.out / "alarm-00003.json").read_text())
    assert {row["score"] for row in evidence["rows"]} == {0.0, torch.tensor(1e30).item()}
    weights = json.dumps(job.rows)
    assert "NaN" not in weights and "Infinity" not in weights
    assert job.rows[2]["nonfinite"] >= 1 and "nonfinite" not in job.rows[3]


QUIET = {"kl_budget": 1e6, "min_explained": -1e9, "reward_sigmas": 1e6, "anchor": 1}


def breaks(monkeypatch: pytest.MonkeyPatch, at: int, what: Callable[[torch.Tensor], Any]) -> None:
    """After the last optimizer step on batch `at` the policy's weights are no longer sound; its loss was finite."""
    real = online.improve

    def broken(learner: Any, rolled: Any, signal: Any, number: int, share: float) -> Any:
        row = real(learner, rolled, signal, number, share)
        if number == at:
            with torch.no_grad():
                for parameter in learner.policy.model.parameters():
                    what(parameter)
        return row

    monkeypatch.setattr(online, "improve", broken)


def sound(out: Path) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in load_file(out / "model.safetensors").values())


@pytest.mark.parametrize("at", [2, 4])  # 4: the last iteration, after which nothing is sampled any more
def test_weights_that_are_not_finite_after_a_step_lead_down_the_ladder(
    start: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    breaks(monkeypatch, at, lambda p: p.view(-1)[:1].fill_(math.nan))
    job = start(recipe(warmup_batches=0, tripwires=Tripwires(on_alarm="ladder", **QUIET)))
    summary = finish(job)
    assert [(entry["rung"], entry["step"]) for entry in summary["ladder"]] == [("lower_learning_rate", at)]
    assert "weights of the policy are not finite" in summary["alarms"][0]["text"]
    assert summary["iterations"] == 4 and not summary["stopped"] and sound(job.out)
    assert len(json.loads((job.out / f"alarm-{at:05d}.json").read_text())["rows"]) == 16


def test_weights_that_are_not_finite_fail_a_stage_that_only_records(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, 4, lambda p: p.fill_(math.nan))
    job = start(recipe(warmup_batches=0))
    with pytest.raises(StageError, match=r"weights of the policy are not finite.*the rollouts are in ") as failed:
        finish(job)
    assert len(json.loads(Path(str(failed.value).rpartition(" in ")[2]).read_text())["rows"]) == 16


@pytest.mark.parametrize("ladder", [("lower_learning_rate", "stop"), ("stop",)])
def test_a_policy_that_cannot_be_sampled_any_more_leads_down_the_ladder(
    start: Any, save_points: Any, monkeypatch: pytest.MonkeyPatch, ladder: Any
) -> None:
    """Finite weights whose logits are not: found when the next batch is sampled. The evidence is what was asked."""
    breaks(monkeypatch, 2, lambda p: p.mul_(1e30))
    chosen = recipe(warmup_batches=0, tripwires=Tripwires(on_alarm="ladder", ladder=ladder, **QUIET))
    job = start(chosen)
    summary = finish(job)
    assert [(entry["rung"], entry["step"]) for entry in summary["ladder"]] == [(ladder[0], 3)]
    assert "the policy gave log-probabilities that are not finite" in summary["alarms"][0]["text"]
    assert summary["stopped"] == (ladder == ("stop",)) and sound(job.out)
    evidence = json.loads((job.out / "alarm-00003.json").read_text())
    assert len(evidence["rows"]) == 16 and evidence["rows"][0]["prompt"] and evidence["rows"][0]["response"] == []
    assert len(list(read_rows(job.out / "rollouts-last.parquet", "Scored"))) == 16
    with pytest.raises(Killed):
        online.run(start(chosen, out="dead", saves=Dying(save_points(), 2), runtime={"save_steps": 1}))
    again = start(chosen, out="again", saves=save_points(), runtime={"save_steps": 1000})
    assert finish(again) == summary and result(again.out) == result(job.out)


def test_a_policy_that_is_broken_from_the_start_is_a_fault(start: Any, policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "broken")
    tensors = {name: t * math.nan for name, t in load_file(policy / "model.safetensors").items()}
    save_file(tensors, tmp_path / "broken/model.safetensors", {"format": "pt"})
    job = start(recipe(tripwires=Tripwires(on_alarm="ladder")), policy=tmp_path / "broken")
    with pytest.raises(StageError, match="the policy gave log-probabilities that are not finite"):
        finish(job)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """rloo without any KL, as a method of its own: methods/free.py."""
    text = Path(methods.__file__).with_name("rloo.py").read_text()
    text = text.replace("    kl_coef: float = 0.05  # TRL\n", "").replace('"kl_coef", ', "")
    (tmp_path / "free.py").write_text(text.replace("config.kl_coef", "0.0"))
    monkeypatch.setattr(methods, "_ROOM", tmp_path)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("methods.free", None)


def test_the_ladder_of_a_method_without_a_kl_coefficient(start: Any, free: Any) -> None:
    rules = ALWAYS.model_copy(update={"ladder": ("lower_learning_rate", "stop")})
    summary = finish(start(recipe(method="free", config={}, k=4, tripwires=rules, warmup_batches=0)))
    assert [(entry["rung"], entry["kl_coef"]) for entry in summary["ladder"]] == [
        ("lower_learning_rate", None),
        ("stop", None),
    ]


def test_a_broken_reward_model_is_a_fault_and_no_collapse(start: Any) -> None:
    nan = lambda rows, pairs, parts: {"helpfulness": [float("nan")] * len(pairs), "safety": [None] * len(pairs)}
    with pytest.raises(StageError, match=r"scored a response to prompt .* with nan"):
        finish(start(recipe(tripwires=Tripwires(on_alarm="ladder"))), nan)


def test_a_run_without_alarms_is_the_same_under_any_answer_to_them(start: Any) -> None:
    quiet = {"kl_budget": 1e6, "min_explained": -1e9, "reward_sigmas": 1e6, "anchor": 1}
    found = {}
    for way in ("record", "stop", "ladder"):
        job = start(recipe(tripwires=Tripwires(on_alarm=way, **quiet)), out=way)  # type: ignore[arg-type]
        summary = finish(job, prefers(lambda token: token % 3 == 0))
        assert summary["alarms"] == [] == summary["ladder"]
        found[way] = result(job.out)
    assert found["record"] == found["stop"] == found["ladder"]
