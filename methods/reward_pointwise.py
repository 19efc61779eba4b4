"""Reward model from single verdicts: a logistic loss on each response alone, so that 0 means undecided.

Source: the usual logistic regression; with pairs it is the pointwise baseline of the ranking loss.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from methods import ops
from methods.batch import Batch, Forwards, Metrics

loop = "offline"
unit = "row"
columns = ("chosen", "rejected")  # chosen_safe and rejected_safe too where verdict = safe
forwards = ("reward",)


@dataclass(frozen=True)
class Config:
    """Which verdict is learned."""

    verdict: Literal["chosen", "safe"] = "chosen"  # chosen against rejected, or the safety labels; ours

    def __post_init__(self) -> None:
        if self.verdict not in ("chosen", "safe"):
            raise ValueError(f"reward-pointwise: verdict {self.verdict!r}: want chosen or safe")


def count(batch: Batch) -> Tensor:
    """Responses, labelled or not."""
    return batch.mask.new_tensor(batch.mask.shape[0], dtype=torch.float32)


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Cross-entropy of sigmoid(reward) against the verdict; responses without a label add 0.

    Args:
        forwards: reward [B], raw.
        batch: rank 0 = chosen; or label [B, 1] = 1 where safe, known where label_mask; count = responses of the step.
    """
    reward = forwards["reward"].float()
    if config.verdict == "chosen":
        verdict, known = (batch.rank == 0).float(), torch.ones_like(batch.rank, dtype=torch.bool)
    elif batch.label.shape[1] == 0:
        raise ValueError("reward-pointwise: verdict safe needs rows with chosen_safe and rejected_safe")
    else:
        verdict, known = batch.label[:, 0], batch.label_mask[:, 0]
    total = ops.masked_sum(binary_cross_entropy_with_logits(reward, verdict, reduction="none"), known)
    metrics = {
        "verdict_loss": ops.measure(total, known.sum()),
        "accuracy": ops.measure((known & ((reward > 0) == (verdict > 0.5))).sum(), known.sum()),
        "reward": ops.measure(reward.sum(), float(reward.numel())),
    }
    return ops.share(total, batch.count), metrics
