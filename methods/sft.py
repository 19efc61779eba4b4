"""Supervised fine-tuning: next-token loss on response tokens only.

Source: Llama 2 (Touvron et al. 2023), section 3.1. The global token mean is ours; the paper does not name the reduction.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.batch import Batch, Forwards, Metrics
from methods.ops import masked_sum, measure, share

loop = "offline"
unit = "token"
columns = ("messages",)
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """Nothing to set: what is learned is decided by the rows."""


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of the responses.

    Args:
        forwards: policy_logp [B, R].
        batch: count = response tokens of the step; a step without any gives 0, not NaN.

    Returns:
        loss [] in nats a token; metrics nll (a token), response_length (a response).
    """
    nll = -masked_sum(forwards["policy_logp"], batch.mask)
    tokens = batch.mask.sum()
    metrics = {"nll": measure(nll, tokens), "response_length": measure(tokens, batch.mask.shape[0])}
    return share(nll, batch.count), metrics
