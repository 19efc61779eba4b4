"""Offline RL by filtering: imitate every response that scores at least a threshold.

Source: Hu et al. 2023 (arXiv 2308.12050), filtering alignment; the formula is from memory.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from methods import sft
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, check_truncated, eligible, quantile, rank

loop = "offline"
unit = "token"
columns = ("messages",)
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """What is good enough. A prompt may give many rows or none: hard prompts starve, which `rejection` avoids."""

    threshold: float = 0.0  # score as `select` is given it; `fit` replaces it where quantile > 0
    quantile: float = 0.75  # of all candidates' scores; 0 = the threshold as given; ours
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise ValueError(
                f"filtered: quantile {self.quantile}: want a number in 0 .. 1, 0 for the threshold as given"
            )
        check_truncated("filtered", self.truncated, self.penalty)


def fit(scores: list[float], config: Config) -> Config:
    """Set the threshold to the pool's quantile.

    Raises:
        ValueError: no scores.
    """
    return config if config.quantile == 0 else replace(config, threshold=quantile(scores, config.quantile))


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """Every response of the upper branch with score >= threshold: rows {response}."""
    usable = eligible(candidates, config.truncated, config.penalty)
    return [{"response": c["text"]} for c in usable if rank(c) >= (1, config.threshold)]


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """`sft.loss` on the responses that are left: policy_logp [B, R] -> nats a token."""
    return sft.loss(forwards, batch, sft.Config())
