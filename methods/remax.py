"""ReMax: REINFORCE with the greedy response's score as baseline; no critic, no ratio, no clip.

Source: Li et al. 2023 (arXiv 2310.10505), algorithm 2, and its repository for the discount (which reaches the last token,
too) and the one-step KL (which is not accumulated). One optimizer step a rollout batch keeps it on-policy.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics, Rollout, State
from methods.rollouts import rollout_metrics, signal_metrics

loop = "online"
unit = "token"
columns = ("prompt",)
forwards = ("policy_logp",)
baseline = "greedy"


@dataclass(frozen=True)
class Config:
    """The defaults are the paper's, but for gamma."""

    kl_coef: float = 0.05  # the repository
    gamma: float = 1.0  # ours; 0.99 in the repository's script, 0.95 its default (METHODS K30)
    clip: float = 5.0  # of score - baseline; the repository; 0 = off
    missing_eos: Literal["minimum", "replace", "subtract", "none"] = "minimum"  # a truncated response's score; ours
    missing_eos_value: float = 1.0  # replace: -1; subtract: 1 off; ours

    def __post_init__(self) -> None:
        for name in ("kl_coef", "clip", "missing_eos_value"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"remax: {name} {getattr(self, name)}: want a number >= 0")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"remax: gamma {self.gamma}: want a number in 0 .. 1")
        if self.missing_eos not in ("minimum", "replace", "subtract", "none"):
            raise ValueError(f"remax: missing_eos {self.missing_eos!r}: want minimum, replace, subtract or none")


def initial_state(config: Config) -> State:
    """A counter of iterations."""
    return {"iterations": 0.0}


def signal(rollout: Rollout, config: Config, state: State) -> tuple[dict[str, Tensor], State, Metrics]:
    """The weight of each token: discounted gain over the greedy response, minus the token's own KL.

    Args:
        rollout: of all ranks; needs `baseline_score`.

    Returns:
        {rewards, advantages} [B, R], 0 outside the mask; the next state; metrics, with `no_gain`: the share of responses
        that score exactly as the greedy one and teach nothing.

    Raises:
        ValueError: no baseline_score.
    """
    if rollout.baseline_score is None:
        raise ValueError("remax: the rollout has no baseline_score: want the greedy responses' scores [B]")
    mask = rollout.mask
    ended = rollout.baseline_finished
    ended = torch.ones_like(rollout.finished) if ended is None else ended
    raw, baseline = rollout.score.float(), rollout.baseline_score.float()
    rule = config.missing_eos, config.missing_eos_value
    score = ops.replace_missing_eos(raw, rollout.finished, *rule)
    if config.missing_eos == "minimum":  # of the sampled ones, for both
        baseline = torch.where(ended, baseline, raw.min())
    else:
        baseline = ops.replace_missing_eos(baseline, ended, *rule)
    gain = score - baseline
    if config.clip > 0:
        gain = gain.clamp(-config.clip, config.clip)
    kl = ops.kl(rollout.old_logp, rollout.reference_logp, mask, "k1")
    left = mask.sum(-1, keepdim=True) - mask.cumsum(-1) + 1  # tokens from this one on: n at the first, 1 at the last
    advantages = torch.where(mask, config.gamma**left * gain.unsqueeze(-1) - config.kl_coef * kl, 0.0)
    rewards = ops.token_rewards(score, kl, mask, config.kl_coef)
    metrics = {
        **rollout_metrics(rollout),
        **signal_metrics(rollout, gain, rewards, advantages),
        "baseline_score": ops.measure(baseline.sum(), float(gain.numel())),
        "no_gain": ops.measure((gain == 0).sum(), float(gain.numel())),
    }
    return {"rewards": rewards, "advantages": advantages}, {"iterations": state["iterations"] + 1}, metrics


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Minus the weighted log-likelihood.

    Args:
        forwards: policy_logp, advantages [B, R].
        batch: count = response tokens of the optimizer step.
    """
    total = -ops.masked_sum(forwards["advantages"] * forwards["policy_logp"].float(), batch.mask)
    return ops.share(total, batch.count), {"policy_loss": ops.measure(total, batch.mask.sum())}
