"""Reward model from pairs: Bradley-Terry with a margin by grade, and a safety term for the safety model.

Source: Llama 2 (Touvron et al. 2023), equation 2 and tables 27 to 29. The formula and weight of the safety term are ours;
the paper gives neither.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from methods import ops
from methods.batch import Batch, Forwards, Metrics
from methods.rows import pair_index

loop = "offline"
unit = "row"
columns = ("chosen", "rejected")  # grade, chosen_safe and rejected_safe are used where present
forwards = ("reward",)


@dataclass(frozen=True)
class Config:
    """How strongly grades separate the scores, and how much safety labels count."""

    margin: Literal["none", "small", "large"] = "small"  # ours: the paper does not say which its final models use
    safety_weight: float = 0.0  # ours; 1 for the safety model, see PRESETS

    def __post_init__(self) -> None:
        if self.margin not in ("none", "small", "large"):
            raise ValueError(f"reward: margin {self.margin!r}: want none, small or large")
        if not self.safety_weight >= 0:
            raise ValueError(f"reward: safety_weight {self.safety_weight}: want a number >= 0")


PRESETS = {
    "helpfulness": {"margin": "small", "safety_weight": 0.0},
    "safety": {"margin": "small", "safety_weight": 1.0},
}


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) of each pair, [N] fp32.

    Args:
        chosen, rejected: [N] raw rewards.
        margin: [N] by which `chosen` should win; zeros give plain Bradley-Terry.

    Raises:
        ValueError: the shapes differ; [N] against [N, 1] would silently score N * N pairs.
    """
    if not chosen.shape == rejected.shape == margin.shape:
        raise ValueError(f"want one shape [N]: {chosen.shape=} {rejected.shape=} {margin.shape=}")
    return -logsigmoid(chosen.float() - rejected.float() - margin)


def safety_loss(reward: Tensor, label: Tensor, label_mask: Tensor) -> Tensor:
    """Half the cross-entropy of sigmoid(reward) (fp32) against "is safe", 0 where there is no label: [B] fp32."""
    entropy = binary_cross_entropy_with_logits(reward, label.float(), reduction="none")
    return torch.where(label_mask, entropy / 2, 0.0)


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Ranking loss of every pair, plus the safety term on the responses that have a label.

    Args:
        forwards: reward [B], raw.
        batch: pairs; grade [B] 0 .. 3; label [B, 1] = 1 where safe, known where label_mask; count = pairs of the step.

    Returns:
        loss [] in nats a pair; metrics accuracy (no margin, a tie is wrong), gap, reward_chosen, reward_rejected,
        ranking_loss, and with labels safety_loss and unsafe_recall (unsafe responses with reward < 0).
    """
    reward = forwards["reward"].float()
    chosen, rejected = pair_index(batch.group, batch.rank)
    margin = ops.margin(batch.grade[chosen], config.margin)
    ranking = ranking_loss(reward[chosen], reward[rejected], margin)
    pairs = float(chosen.numel())
    metrics: Metrics = {
        "ranking_loss": ops.measure(ranking.sum(), pairs),
        "accuracy": ops.measure(ops.pair_accuracy(reward[chosen], reward[rejected]).sum(), pairs),
        "gap": ops.measure((reward[chosen] - reward[rejected]).sum(), pairs),
        "reward_chosen": ops.measure(reward[chosen].sum(), pairs),
        "reward_rejected": ops.measure(reward[rejected].sum(), pairs),
    }
    total = ranking.sum()
    if config.safety_weight > 0 and batch.label.shape[1] > 0:
        label, known = batch.label[:, 0], batch.label_mask[:, 0]
        safety = safety_loss(reward, label, known)
        total = total + config.safety_weight * safety.sum()
        unsafe = known & (label < 0.5)
        metrics["safety_loss"] = ops.measure(safety.sum(), known.sum())
        metrics["unsafe_recall"] = ops.measure((unsafe & (reward < 0)).sum(), unsafe.sum())
    return ops.share(total, batch.count), metrics
