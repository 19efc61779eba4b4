"""engine.probe: the temperature that gains most from best-of-K (METHODS 3.3)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.recipes import Limits, Probe
from engine import probe, sampler

LIMITS = Limits(prompt_tokens=90, response_tokens=10)
RECIPE = Probe(temperatures=(0.05, 1.0, 1.7), prompts=10, k=4, limits=LIMITS)


def test_the_curve_holds_every_temperature_and_the_best_is_taken(
    make_job: Any, policy: Path, prompts: Path, rewards: list[Path]
) -> None:
    job = make_job("probe", RECIPE, policy=policy, prompts=prompts, rewards=rewards)
    found = probe.run(job)
    assert json.loads((job.out / "probe.json").read_text()) == found
    assert [point["temperature"] for point in found["curve"]] == [0.05, 1.0, 1.7]
    best = max(found["curve"], key=lambda point: point["expected_max"])
    assert found["temperature"] == best["temperature"]
    for point in found["curve"]:
        assert list(point["expected_max_of"]) == ["1", "2", "4"]
        assert point["expected_max_of"]["4"] == point["expected_max"]
    said = [point["distinct"] for point in found["curve"]]
    assert said[0] < said[2]  # a higher temperature says more different things
    assert found["curve"][0]["self_bleu"] > found["curve"][2]["self_bleu"]


def test_one_reward_model_is_enough_and_more_candidates_are_never_worse(
    make_job: Any, policy: Path, prompts: Path, rewards: list[Path]
) -> None:
    found = probe.run(make_job("probe", RECIPE, policy=policy, prompts=prompts, rewards=rewards[:1]))
    for point in found["curve"]:  # one branch only: then the expected maximum cannot fall with n
        values = [point["expected_max_of"][n] for n in ("1", "2", "4")]
        assert values == sorted(values) and values[2] > values[0]


def test_a_killed_probe_continues(
    make_job: Any, policy: Path, prompts: Path, rewards: list[Path], save_points: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = {"policy": policy, "prompts": prompts, "rewards": rewards}
    whole = probe.run(make_job("probe", RECIPE, out="whole", **given))
    calls, real = [0], sampler.generate

    def counted(*args: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(sampler, "generate", counted)
    each = {"runtime": {"save_steps": 1}}
    with pytest.raises(KeyboardInterrupt):
        probe.run(make_job("probe", RECIPE, out="first", saves=save_points(), **given, **each))
    assert probe.run(make_job("probe", RECIPE, out="second", saves=save_points(), **given, **each)) == whole
    assert calls[0] == 4
