"""REINFORCE leave-one-out: each response against the mean of the prompt's other responses, the whole response one action.

Source: Ahmadian et al. 2024 (arXiv 2402.14740), section 3. The clipped sequence ratio for further steps on one rollout batch
is TRL's; with one step it is 1 and the gradient REINFORCE's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics, Rollout, State
from methods.groups import group_means, require_groups
from methods.rollouts import rollout_metrics, signal_metrics

loop = "online"
least_k = 2  # responses a prompt: each is compared with the others
unit = "row"
columns = ("prompt",)
forwards = ("policy_logp", "old_logp")


@dataclass(frozen=True)
class Config:
    """The KL is in the reward, summed over the response."""

    kl_coef: float = 0.05  # TRL
    clip: float = 0.2  # of the sequence ratio; TRL; 0 = off
    whiten_advantages: bool = False  # over the rollout batch; TRL's default is off
    missing_eos: Literal["minimum", "replace", "subtract", "none"] = "minimum"  # a truncated response's score; ours
    missing_eos_value: float = 1.0  # replace: -1; subtract: 1 off; ours

    def __post_init__(self) -> None:
        for name in ("kl_coef", "clip", "missing_eos_value"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"rloo: {name} {getattr(self, name)}: want a number >= 0")
        if self.clip >= 1:
            raise ValueError(f"rloo: clip {self.clip}: want a number in 0 .. 1, 1 - clip is the least ratio")
        if self.missing_eos not in ("minimum", "replace", "subtract", "none"):
            raise ValueError(f"rloo: missing_eos {self.missing_eos!r}: want minimum, replace, subtract or none")


def initial_state(config: Config) -> State:
    """A counter of iterations."""
    return {"iterations": 0.0}


def count(batch: Batch) -> Tensor:
    """Responses."""
    return batch.mask.new_tensor(batch.mask.shape[0], dtype=torch.float32)


def signal(rollout: Rollout, config: Config, state: State) -> tuple[dict[str, Tensor], State, Metrics]:
    """Score minus KL of the response, minus the mean of the others.

    Returns:
        {rewards, advantages} [B, R], 0 outside the mask (a response's advantage stands at each of its tokens); the next
        state; metrics.

    Raises:
        ValueError: a prompt with one response.
    """
    sizes = require_groups("rloo", rollout.group)
    mask = rollout.mask
    score = ops.replace_missing_eos(
        rollout.score.float(), rollout.finished, config.missing_eos, config.missing_eos_value
    )
    kl = ops.kl(rollout.old_logp, rollout.reference_logp, mask, "k1")
    total = score - config.kl_coef * kl.sum(-1)
    advantage = (total - group_means(total, rollout.group)) * sizes / (sizes - 1)
    if config.whiten_advantages:
        advantage = ops.whiten(advantage)
    advantages = torch.where(mask, advantage.unsqueeze(-1), 0.0)
    rewards = ops.token_rewards(score, kl, mask, config.kl_coef)
    metrics = {**rollout_metrics(rollout), **signal_metrics(rollout, score, rewards, advantages)}
    return {"rewards": rewards, "advantages": advantages}, {"iterations": state["iterations"] + 1}, metrics


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Clipped surrogate of whole responses.

    Args:
        forwards: policy_logp, old_logp, advantages [B, R].
        batch: count = responses of the optimizer step.
    """
    logp = ops.sequence_sum(forwards["policy_logp"], batch.mask)
    old_logp = ops.sequence_sum(forwards["old_logp"], batch.mask)
    advantage = ops.sequence_mean(forwards["advantages"], batch.mask)
    losses, ratio, clipped = ops.clipped_surrogate(logp, old_logp, advantage, config.clip)
    rows = float(losses.numel())
    metrics = {
        "policy_loss": ops.measure(losses.sum(), rows),
        "ratio": ops.measure(ratio.sum(), rows),
        "clip_fraction": ops.measure(clipped.sum(), rows),
        "drift": ops.measure(
            ops.masked_sum((forwards["policy_logp"].float() - forwards["old_logp"].float()).abs(), batch.mask),
            batch.mask.sum(),
        ),
    }
    return ops.share(losses.sum(), batch.count), metrics
