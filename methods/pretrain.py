"""Pretraining and continued pretraining: next-token loss on every token of a document.

Source: Ibrahim et al. 2024 (arXiv 2403.08763), section 3. The loop's mask is 1 on every predicted token.
"""

from dataclasses import dataclass

from torch import Tensor

from methods import sft
from methods.batch import Batch, Forwards, Metrics

loop = "offline"
unit = "token"
columns = ("text",)
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """Nothing to set: replay and learning rates belong to the data and the schedule (methods/schedules.py)."""


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of the tokens: `sft.loss` under another mask.

    Args:
        forwards: policy_logp [B, R].
        batch: mask 1 on every predicted token, count = such tokens of the step.

    Returns:
        loss [] in nats a token; metrics nll (a token), tokens (a sequence).
    """
    total, metrics = sft.loss(forwards, batch, sft.Config())
    return total, {"nll": metrics["nll"], "tokens": metrics["response_length"]}
