"""Group relative policy optimisation: PPO's surrogate with the prompt's own responses as the baseline, KL in the loss.

Source: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1; Liu et al. 2025 ("Dr. GRPO") for the two corrections
(scale = none, length_constant > 0).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics, Rollout, State
from methods.groups import group_means, group_sums, require_groups
from methods.rollouts import rollout_metrics, signal_metrics

loop = "online"
least_k = 2  # responses a prompt: each is compared with the others
unit = "row"
columns = ("prompt",)
forwards = ("policy_logp", "old_logp", "reference_logp")

_STD_EPS = 1e-4  # TRL's; it also decides how little a nearly equal group teaches


@dataclass(frozen=True)
class Config:
    """k3 is the paper's KL; as a loss its gradient is of the other direction.

    k3+ keeps its value and has k2's gradient; k3-weighted multiplies it by the ratio, as TRL does by default. Both have the
    gradient of KL(policy || reference), k3-weighted also after several steps on one rollout batch.
    """

    kl_coef: float = 0.04  # the paper
    kl_estimator: Literal["k3+", "k3-weighted", "k3", "k2"] = "k3+"  # METHODS 6.3; the paper: k3
    clip: float = 0.2  # as PPO; the paper gives none
    scale: Literal["group", "none"] = "group"  # divide by the group's standard deviation: the paper; none: Dr. GRPO
    length_constant: int = 0  # tokens; 0 = each response's own length (the paper), n = always n (Dr. GRPO)
    missing_eos: Literal["minimum", "replace", "subtract", "none"] = "minimum"  # a truncated response's score; ours
    missing_eos_value: float = 1.0  # replace: -1; subtract: 1 off; ours

    def __post_init__(self) -> None:
        for name in ("kl_coef", "clip", "missing_eos_value", "length_constant"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"grpo: {name} {getattr(self, name)}: want a number >= 0")
        if self.clip >= 1:
            raise ValueError(f"grpo: clip {self.clip}: want a number in 0 .. 1, 1 - clip is the least ratio")
        if self.kl_estimator not in ("k3+", "k3-weighted", "k3", "k2"):
            raise ValueError(f"grpo: kl_estimator {self.kl_estimator!r}: want k3+, k3-weighted, k3 or k2")
        if self.scale not in ("group", "none"):
            raise ValueError(f"grpo: scale {self.scale!r}: want group or none")
        if self.missing_eos not in ("minimum", "replace", "subtract", "none"):
            raise ValueError(f"grpo: missing_eos {self.missing_eos!r}: want minimum, replace, subtract or none")


PRESETS = {
    "deepseekmath": {"kl_coef": 0.04, "kl_estimator": "k3", "scale": "group", "length_constant": 0},
    "dr-grpo": {"kl_coef": 0.0, "scale": "none", "length_constant": 256},
}


def initial_state(config: Config) -> State:
    """A counter of iterations."""
    return {"iterations": 0.0}


def count(batch: Batch) -> Tensor:
    """Responses."""
    return batch.mask.new_tensor(batch.mask.shape[0], dtype=torch.float32)


def signal(rollout: Rollout, config: Config, state: State) -> tuple[dict[str, Tensor], State, Metrics]:
    """Score relative to the prompt's other responses; the KL is left to the loss.

    Returns:
        {rewards, advantages} [B, R], 0 outside the mask; the next state; metrics, with `no_gain`: the share of responses
        in groups of equal scores, which teach nothing.

    Raises:
        ValueError: a prompt with one response.
    """
    sizes = require_groups("grpo", rollout.group)
    mask = rollout.mask
    score = ops.replace_missing_eos(
        rollout.score.float(), rollout.finished, config.missing_eos, config.missing_eos_value
    )
    centred = score - group_means(score, rollout.group)
    std = (group_sums(centred.square(), rollout.group) / (sizes - 1)).sqrt()
    advantage = centred / (std + _STD_EPS) if config.scale == "group" else centred
    advantages = torch.where(mask, advantage.unsqueeze(-1), 0.0)
    rewards = ops.token_rewards(score, torch.zeros_like(rollout.old_logp), mask, 0.0)
    metrics = {
        **rollout_metrics(rollout),
        **signal_metrics(rollout, score, rewards, advantages),
        "no_gain": ops.measure((std == 0).sum(), float(std.numel())),
    }
    return {"rewards": rewards, "advantages": advantages}, {"iterations": state["iterations"] + 1}, metrics


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Mean over responses of the token mean of surrogate + kl_coef * KL.

    Args:
        forwards: policy_logp, old_logp, reference_logp, advantages [B, R].
        batch: count = responses of the optimizer step.
    """
    mask = batch.mask
    logp, old_logp = forwards["policy_logp"].float(), forwards["old_logp"].float()
    losses, ratio, clipped = ops.clipped_surrogate(logp, old_logp, forwards["advantages"], config.clip)
    kl = _kl_loss(logp, forwards["reference_logp"], ratio, mask, config)
    summed = ops.sequence_sum(losses + config.kl_coef * kl, mask)
    length = mask.sum(-1).clamp(min=1) if config.length_constant == 0 else config.length_constant
    total = (summed / length).sum()
    tokens = mask.sum()
    metrics = {
        "policy_loss": ops.measure(total, float(mask.shape[0])),
        "kl_loss": ops.measure(kl.sum(), tokens),
        "ratio": ops.measure(ops.masked_sum(ratio, mask), tokens),
        "clip_fraction": ops.measure(ops.masked_sum(clipped, mask), tokens),
        "drift": ops.measure(ops.masked_sum((logp - old_logp).abs(), mask), tokens),
    }
    return ops.share(total, batch.count), metrics


def _kl_loss(logp: Tensor, reference_logp: Tensor, ratio: Tensor, mask: Tensor, config: Config) -> Tensor:
    """KL of each token [B, R], 0 outside the mask."""
    k3 = ops.kl(logp, reference_logp, mask, "k3")
    if config.kl_estimator == "k3":
        return k3
    if config.kl_estimator == "k3-weighted":
        return torch.where(mask, ratio, 0.0) * k3
    k2 = ops.kl(logp, reference_logp, mask, "k2")
    return k2 if config.kl_estimator == "k2" else k2 + (k3 - k2).detach()
