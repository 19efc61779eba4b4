import math
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.recipes import Optimizer
from configs.runtime import Runtime
from engine.errors import StageError
from engine.models import load_policy, reward_from_policy
from engine.sharding import Plain, Schedule, decayed

FREE = Optimizer(learning_rate=0.1, schedule="constant", warmup=0.0, min_warmup_steps=0, weight_decay=0.0, clip=0.0)


def _model() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def _loss(model: Any, step: int) -> torch.Tensor:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    return model(x).square().mean()


def test_cosine_schedule_has_its_golden_values() -> None:  # T55
    schedule = Schedule(Optimizer(learning_rate=1.0, warmup=0.05, min_warmup_steps=5, floor=0.1), 100)
    found = {step: schedule.rate(step) for step in (1, 4, 5, 52, 99, 100)}
    wanted = {1: 0.2, 4: 0.8, 5: 1.0, 52: 0.55744, 99: 0.100246, 100: 0.1}  # METHODS C.3
    assert all(math.isclose(found[k], wanted[k], abs_tol=1e-5) for k in wanted)


def test_no_step_is_spent_at_rate_zero_and_warm_up_ends() -> None:  # T55
    for total in (2, 3, 7, 50):
        rates = [Schedule(Optimizer(learning_rate=1.0), total).rate(step) for step in range(1, total + 1)]
        assert min(rates) > 0 and max(rates) > 0.5
    assert Schedule(FREE, 3).rate(1) == 0.1
    linear = Schedule(FREE.model_copy(update={"schedule": "linear", "floor": 0.0}), 4)
    assert [round(linear.rate(step), 6) for step in (1, 2, 4)] == [0.075, 0.05, 0.0]


def test_matrices_decay_and_nothing_else(policies: dict[str, Path]) -> None:
    for folder in policies.values():
        for model in (load_policy(folder, Runtime()), reward_from_policy(folder, Runtime(), 1)):
            heavy, light = ([n for n, _ in group] for group in decayed(model))
            assert len(heavy) + len(light) == len(list(model.named_parameters()))
            assert not any(
                part in n for n in heavy for part in ("norm", "ln_", "bias", "embed", "wte", "wpe", "head", "score")
            )
            assert sum("weight" in n for n in heavy) >= 8


def test_update_is_adamw_of_the_paper() -> None:
    model = _model()
    weight, recipe = model[0].weight, FREE.model_copy(update={"weight_decay": 0.5})
    before = weight.detach().clone()
    trainer = Plain(model, recipe, 10)
    trainer.backward(_loss(model, 1))
    gradient = weight.grad.clone()
    trainer.step()
    # first step: both moments, bias corrected, are the gradient itself
    wanted = before * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + recipe.eps)
    assert torch.allclose(weight, wanted, atol=1e-6)


def test_clipping_bounds_the_norm_and_zero_switches_it_off() -> None:  # T53
    moved = {}
    for clip in (0.0, 1e-3, 1e9):
        model = _model()
        trainer = Plain(model, FREE.model_copy(update={"clip": clip, "eps": 1.0}), 10)
        trainer.backward(_loss(model, 1) * 100)
        wanted = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        before = [p.detach().clone() for p in model.parameters()]
        assert math.isclose(trainer.step(), float(wanted), rel_tol=1e-6)
        moved[clip] = sum(float((p.detach() - b).abs().sum()) for p, b in zip(model.parameters(), before))
    assert moved[0.0] == moved[1e9] > 100 * moved[1e-3]


def test_infinite_gradient_updates_nothing() -> None:
    model = _model()
    trainer = Plain(model, FREE, 10)
    before = [p.detach().clone() for p in model.parameters()]
    trainer.backward(_loss(model, 1) * math.inf)
    with pytest.raises(StageError, match=r"gradient norm .* at step 1: not finite"):
        trainer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:  # T54, T56
    recipe = Optimizer(learning_rate=0.05)
    rates: dict[str, list[float]] = {"whole": [], "parts": []}

    def go(trainer: Plain, steps: range, name: str) -> None:
        for step in steps:
            rates[name].append(trainer.rate)
            trainer.backward(_loss(trainer.model, step))
            trainer.step()

    whole = Plain(_model(), recipe, 10)
    go(whole, range(1, 11), "whole")
    first = Plain(_model(), recipe, 10)
    go(first, range(1, 6), "parts")
    record = first.save(tmp_path)
    second = Plain(_model(), recipe, 10)
    second.restore(tmp_path, record)
    go(second, range(6, 11), "parts")
    assert rates["whole"] == rates["parts"] == [Schedule(recipe, 10).rate(step) for step in range(1, 11)]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters()))
