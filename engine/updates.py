"""The optimizer steps of one iteration of online learning: minibatches of rollouts -> policy and critic."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from configs.recipes import Online
from configs.runtime import Runtime
from engine.batches import Padded, micro_batches, permutation
from engine.errors import NotFinite, StageError
from engine.examples import Item
from engine.packing import Shape, arrange
from engine.rollouts import Rolled, take
from engine.sharding import ALONE
from methods import sft
from methods.batch import Batch, Metrics, batch_of, denominator


@dataclass(frozen=True)
class Learner:
    """What learns, and by which rule."""

    method: ModuleType
    config: Any  # the method's Config
    recipe: Online
    runtime: Runtime
    policy: Any  # sharding.Plain or zero.Zero
    critic: Any | None
    pad_id: int
    shape: Shape  # of the policy's body; the critic's is taken to be alike
    examples: Sequence[Item]  # for the language-model term; none = no such term


class Totals:
    """Metrics of many micro-batches, as sums and counts."""

    def __init__(self) -> None:
        self._held: dict[str, list[Tensor]] = {}

    def add(self, metrics: Metrics) -> None:
        """Add one micro-batch's."""
        for name, (total, count) in metrics.items():
            held = self._held.setdefault(name, [torch.zeros_like(total), torch.zeros_like(count)])
            held[0] = held[0] + total
            held[1] = held[1] + count

    def means(self, team: Any = ALONE) -> dict[str, float]:
        """Every metric that was counted at least once, over all processes of the team."""
        merged = team.merge({name: (total.cpu(), count.cpu()) for name, (total, count) in self._held.items()})
        return {name: float(total / count) for name, (total, count) in merged.items() if float(count) > 0}


def minibatches(recipe: Online, number: int, epoch: int) -> list[list[int]]:
    """The prompts (groups of K rollouts) of each optimizer step of one pass over batch `number`, in a fresh order."""
    count, size = recipe.batch_size // recipe.k, recipe.minibatch_size // recipe.k
    order = permutation(recipe.seed, f"minibatches-{number}", epoch, count)
    return [order[i : i + size] for i in range(0, count, size)]


def improve(
    learner: Learner, rolled: Rolled, signal: Mapping[str, Tensor], number: int, progress: float
) -> dict[str, float]:
    """All optimizer steps on one batch of rollouts; returns their mean metrics.

    Raises:
        StageError: a loss or gradient that is not finite, or a first minibatch whose policy is not the one that sampled.
    """
    recipe, totals = learner.recipe, Totals()
    found = {"policy_rate": learner.policy.rate}
    if learner.critic is not None:
        found["critic_rate"] = learner.critic.rate
    norms: dict[str, list[float]] = {}
    first = True
    for epoch in range(recipe.epochs):
        for groups in minibatches(recipe, number, epoch):
            if first:
                found |= _policy_step(learner, rolled, signal, groups, progress, totals, first=True)
                first = False
            else:
                found["ratio_max"] = max(
                    found["ratio_max"], _policy_step(learner, rolled, signal, groups, progress, totals)["ratio_max"]
                )
            norms.setdefault("policy_norm", []).append(learner.policy.step())
            if learner.critic is not None:
                _value_backward(learner, rolled, signal, groups, progress, totals)
                norms.setdefault("critic_norm", []).append(learner.critic.step())
    return {**totals.means(learner.policy), **found, **{name: sum(v) / len(v) for name, v in norms.items()}}


def fit_critic(learner: Learner, rolled: Rolled, signal: Mapping[str, Tensor], number: int) -> dict[str, float]:
    """The critic's warm-up on one batch of rollouts: value steps only, the policy stays where it is."""
    assert learner.critic is not None
    recipe, totals, norms = learner.recipe, Totals(), []
    per_epoch = recipe.batch_size // recipe.minibatch_size
    rate = learner.critic.rate
    for step in range(recipe.warmup_steps):
        groups = minibatches(recipe, number, step // per_epoch)[step % per_epoch]
        _value_backward(learner, rolled, signal, groups, 0.0, totals, free=True)
        norms.append(learner.critic.step())
    return {**totals.means(learner.critic), "critic_rate": rate, "critic_norm": sum(norms) / max(1, len(norms))}


@dataclass(frozen=True, eq=False)
class _Part:
    """A micro-batch: its sequences, its share of what was fixed by the rollout, and what the method sees of it."""

    padded: Padded
    fixed: dict[str, Tensor]
    batch: Batch
    counts: bool  # else it is computed only because all processes compute as much


def _parts(
    learner: Learner, rolled: Rolled, signal: Mapping[str, Tensor], groups: Sequence[int], progress: float
) -> Iterator[_Part]:
    """This process's micro-batches of one minibatch; `batch.count` is that of the whole minibatch."""
    k, rollout = learner.recipe.k, rolled.rollout
    members = [list(range(g * k, g * k + k)) for g in groups]
    lengths = [[sum(map(len, rolled.pairs[i])) for i in rows] for rows in members]
    whole = [i for rows in members for i in rows]
    count = denominator(learner.method, batch_of(rollout.mask[whole], group=rollout.group[whole]))
    fixed = {"old_logp": rollout.old_logp, "reference_logp": rollout.reference_logp, **signal}
    if rollout.value is not None:
        fixed["old_value"] = rollout.value
    parts = micro_batches(lengths, learner.runtime.train_rows)
    for number, counts in learner.policy.share(len(parts)):
        rows = [i for g in parts[number] for i in members[g]]
        padded = arrange([rolled.pairs[i] for i in rows], pad_id=learner.pad_id, shape=learner.shape).to(
            learner.runtime.device
        )
        depth = padded.response_mask.shape[1]
        batch = batch_of(
            padded.response_mask,
            group=rollout.group[rows],
            rank=torch.tensor([i % k for i in rows], device=padded.ids.device),
            score=rollout.score[rows],
            progress=progress,
            count=count,
        )
        yield _Part(padded, {name: tensor[rows, :depth] for name, tensor in fixed.items()}, batch, counts)


def _policy_step(
    learner: Learner,
    rolled: Rolled,
    signal: Mapping[str, Tensor],
    groups: Sequence[int],
    progress: float,
    totals: Totals,
    *,
    first: bool = False,
) -> dict[str, float]:
    """Gradients of the policy for one minibatch; the caller steps."""
    names = [n for n in learner.method.forwards if n in ("policy_logp", "policy_entropy")]
    if not getattr(learner.config, "entropy_coef", 0.0):
        names = ["policy_logp"]  # the rollout has reported the entropy; nobody asks for its gradient
    loss_of = getattr(learner.method, "policy_loss", learner.method.loss)
    total, drift, ratio = 0.0, 0.0, 0.0
    for part in _parts(learner, rolled, signal, groups, progress):
        forwards = learner.policy.forward(tuple(names), part.padded, learner.recipe.temperature)
        loss, metrics = loss_of({**part.fixed, **forwards}, part.batch, learner.config)
        learner.policy.backward(loss * float(part.counts))
        moved = (forwards["policy_logp"].detach() - part.fixed["old_logp"])[part.batch.mask]
        drift, ratio = max(drift, float(moved.abs().max())), max(ratio, float(moved.max().exp()))
        if part.counts:
            total += float(loss.detach())
            totals.add(metrics)
        if first:
            check_first(moved, metrics, learner.recipe.dtype)
    if learner.examples:
        total += _language_step(learner, totals)
    every = learner.policy.everyone((total, drift, ratio))
    drift, ratio = max(one[1] for one in every), max(one[2] for one in every)
    _finite(sum(one[0] for one in every), "policy", learner.policy.updates)
    return {"ratio_max": ratio, "first_drift": drift} if first else {"ratio_max": ratio}


def check_first(moved: Tensor, metrics: Metrics, dtype: str) -> None:
    """Raise StageError unless the policy of an iteration's first minibatch is the one that sampled (METHODS 6.1).

    moved: [N] new minus old log-prob of every response token. It finds an off-by-one, dropout, another temperature,
    dtype or mask, and stale weights.
    """
    limit = 1e-3 if dtype == "float32" else 0.05
    drift, ratio = float(moved.abs().max()), float(moved.exp().mean())
    clipped, _ = metrics.get("clip_fraction", (torch.zeros(()), torch.ones(())))
    if not (drift < limit and abs(ratio - 1) < limit and float(clipped) == 0):
        raise StageError(
            f"first minibatch: the policy is not the one that sampled: log-probs moved by up to {drift:.2e} (at most "
            f"{limit:g}), mean ratio {ratio:.5f} (want 1), {int(clipped)} tokens clipped (want 0)"
        )


def _value_backward(
    learner: Learner,
    rolled: Rolled,
    signal: Mapping[str, Tensor],
    groups: Sequence[int],
    progress: float,
    totals: Totals,
    *,
    free: bool = False,
) -> None:
    """Gradients of the critic for one minibatch. free: without the value clip, which in many steps on one batch would
    hold the critic at what it said first."""
    assert learner.critic is not None
    total = 0.0
    for part in _parts(learner, rolled, signal, groups, progress):
        forwards = learner.critic.forward(("value",), part.padded)
        old = {"old_value": forwards["value"].detach()} if free else {}
        loss, metrics = learner.method.value_loss({**part.fixed, **forwards, **old}, part.batch, learner.config)
        learner.critic.backward(loss * float(part.counts))
        if part.counts:
            total += float(loss.detach())
            totals.add(metrics)
    _finite(sum(learner.critic.everyone(total)), "value", learner.critic.updates)


def _language_step(learner: Learner, totals: Totals) -> float:
    """Add the gradient of the language-model loss on a batch of examples (ptx); returns this process's part of the loss."""
    recipe, total = learner.recipe, 0.0
    size = min(recipe.ptx_batch_size, len(learner.examples))
    places = take(len(learner.examples), learner.policy.updates * size, size, recipe.seed, "examples")
    items = [learner.examples[i] for i in places]
    tokens = sum(len(item.responses[0]) if item.learned[0] is None else int(item.learned[0].sum()) for item in items)
    parts = micro_batches([item.lengths for item in items], learner.runtime.train_rows)
    for number, counts in learner.policy.share(len(parts)):
        chosen = [items[i] for i in parts[number]]
        padded = arrange(
            [item.pairs()[0] for item in chosen],
            pad_id=learner.pad_id,
            shape=learner.shape,
            learned=[item.learned[0] for item in chosen],
        ).to(learner.runtime.device)
        batch = batch_of(padded.response_mask, count=torch.tensor(float(tokens), device=padded.ids.device))
        forwards = learner.policy.forward(sft.forwards, padded)
        loss, metrics = sft.loss(forwards, batch, sft.Config())
        learner.policy.backward(recipe.ptx_weight * float(counts) * loss)
        if counts:
            total += recipe.ptx_weight * float(loss.detach())
            totals.add({"ptx_nll": metrics["nll"]})
    return total


def _finite(total: float, what: str, updates: int) -> None:
    if not total - total == 0:
        raise NotFinite(f"{what} loss {total} at optimizer step {updates + 1}: not finite")
