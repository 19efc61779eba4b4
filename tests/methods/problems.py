"""Random problems for every method: the same seed gives the same one."""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import methods
from methods.batch import Batch, Rollout, denominator

PAIRWISE = ("chosen",)
# What ships: each has its line in docs/methods.md and its formula in methods_oracle.py.
FIELD = [
    "conditional",
    "curriculum-dpo",
    "dpo",
    "filtered",
    "grpo",
    "ppo",
    "pretrain",
    "pro",
    "rejection",
    "remax",
    "reward",
    "reward-attributes",
    "reward-pointwise",
    "reward-ranking",
    "rloo",
    "rrhf",
    "rso",
    "rwr",
    "sft",
    "steerlm",
]
ATTRIBUTES = 5


@dataclass(frozen=True)
class Problem:
    """One batch that is a whole optimizer step, and what the loop would compute for it."""

    method: ModuleType
    config: Any
    forwards: dict[str, Tensor]
    batch: Batch

    def loss(self) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        return self.method.loss(self.forwards, self.batch, self.config)


def problem(name: str, seed: int = 0, rows: int = 4, width: int = 6, **settings: Any) -> Problem:
    method = methods.load(name)
    config = method.Config(**settings)
    rng = torch.Generator().manual_seed(seed)
    sizes = _sizes(method, rows, rng)
    group = torch.repeat_interleave(torch.arange(rows), torch.tensor(sizes))
    total = int(group.numel())
    mask = torch.arange(width) < torch.randint(1, width + 1, (total, 1), generator=rng)
    normal = lambda *shape: torch.randn(*shape, generator=rng)
    heads = ATTRIBUTES if name == "reward-attributes" else 1
    batch = Batch(
        mask=mask,
        group=group,
        rank=torch.cat([torch.arange(size) for size in sizes]),
        score=torch.randint(0, 4, (total,), generator=rng).float() + 0.25,  # ties happen
        grade=torch.randint(0, 4, (rows,), generator=rng).float()[group],
        label=torch.randint(0, 2, (total, heads), generator=rng).float(),
        label_mask=torch.rand(total, heads, generator=rng) < 0.7,
        weight=torch.rand(total, generator=rng) * 2,
        progress=0.3,
        count=torch.ones(()),
    )
    batch = replace(batch, count=denominator(method, batch))
    old = -normal(total, width).abs() - 0.1
    forwards = {
        "policy_logp": old + 0.3 * normal(total, width),
        "old_logp": old,
        "reference_logp": old + 0.2 * normal(total, width),
        "policy_entropy": normal(total, width).abs(),
        "value": normal(total, width),
        "old_value": normal(total, width),
        "advantages": normal(total, width),
        "returns": normal(total, width),
        "reward": normal(total, heads) if heads > 1 else normal(total),
    }
    if name == "rloo":  # one advantage a response, as its signal gives
        forwards["advantages"] = forwards["advantages"][:, :1].expand(-1, width).clone()
    wanted = {*method.forwards, *(("advantages", "returns") if method.loop == "online" else ())}
    return Problem(method, config, {key: forwards[key] for key in sorted(wanted)}, batch)


def _sizes(method: ModuleType, rows: int, rng: torch.Generator) -> list[int]:
    if "chosen" in method.columns:
        return [2] * rows
    if "responses" in method.columns:
        return torch.randint(1, 5, (rows,), generator=rng).tolist()
    return [1] * rows


def take(problem: Problem, index: Tensor) -> Problem:
    """The problem's responses at `index`, still as part of the whole step: its count stays."""
    batch = problem.batch
    parts = {
        name: getattr(batch, name)[index]
        for name in ("mask", "group", "rank", "score", "grade", "label", "label_mask", "weight")
    }
    forwards = {name: value[index] for name, value in problem.forwards.items()}
    return replace(problem, forwards=forwards, batch=replace(batch, **parts))


def widen(problem: Problem, by: int, garbage: float) -> Problem:
    """The same responses padded by `by` more columns that hold garbage outside the mask."""
    batch = problem.batch
    mask = torch.cat([batch.mask, torch.zeros(batch.mask.shape[0], by, dtype=torch.bool)], 1)

    def wider(value: Tensor) -> Tensor:
        if value.shape != batch.mask.shape:
            return value
        value = torch.cat([value, torch.zeros(value.shape[0], by)], 1)
        return torch.where(mask, value, garbage)

    forwards = {name: wider(value) for name, value in problem.forwards.items()}
    return replace(problem, forwards=forwards, batch=replace(batch, mask=mask))


def rollout(seed: int = 0, prompts: int = 4, k: int = 3, width: int = 6) -> Rollout:
    rng = torch.Generator().manual_seed(seed)
    total = prompts * k
    mask = torch.arange(width) < torch.randint(1, width + 1, (total, 1), generator=rng)
    old = -torch.randn(total, width, generator=rng).abs() - 0.1
    return Rollout(
        mask=mask,
        old_logp=old,
        reference_logp=old + 0.3 * torch.randn(total, width, generator=rng),
        score=2 * torch.randn(total, generator=rng) + 1,
        finished=torch.rand(total, generator=rng) < 0.8,
        group=torch.arange(prompts).repeat_interleave(k),
        value=torch.randn(total, width, generator=rng),
        branch=torch.randint(0, 2, (total,), generator=rng),
        baseline_score=torch.randn(prompts, generator=rng).repeat_interleave(k),
        baseline_finished=(torch.rand(prompts, generator=rng) < 0.8).repeat_interleave(k),
    )


def widen_rollout(given: Rollout, by: int, garbage: float) -> Rollout:
    mask = torch.cat([given.mask, torch.zeros(given.mask.shape[0], by, dtype=torch.bool)], 1)
    wider = lambda x: torch.where(mask, torch.cat([x, torch.zeros(x.shape[0], by)], 1), garbage)
    assert given.value is not None
    return replace(
        given,
        mask=mask,
        old_logp=wider(given.old_logp),
        reference_logp=wider(given.reference_logp),
        value=wider(given.value),
    )


def permute_rollout(given: Rollout, index: Tensor) -> Rollout:
    return Rollout(**{name: value[index] for name, value in vars(given).items()})
