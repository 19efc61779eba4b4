"""Offline RL by reward-weighted regression: imitate every response, better ones more.

Source: Hu et al. 2023 (arXiv 2308.12050), after Peters and Schaal 2007; the formula is from memory, the clip is ours.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, check_truncated, eligible, moments

loop = "offline"
unit = "token"
columns = ("messages", "weight")
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """weight = min(exp(z / beta), max_weight) / normaliser, z = the score in standard deviations of the whole pool."""

    beta: float = 1.0  # in standard deviations; small = only the best; ours
    max_weight: float = 20.0  # METHODS 7.8
    score_mean: float = 0.0  # set by `fit`
    score_std: float = 1.0  # set by `fit`
    normaliser: float = 1.0  # mean unnormalised weight of the pool; set by `fit`
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        for name in ("beta", "max_weight", "score_std", "normaliser"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rwr: {name} {getattr(self, name)}: want a number > 0")
        check_truncated("rwr", self.truncated, self.penalty)


def weigh(score: float, config: Config) -> float:
    """Weight of one response; over the pool that was fitted the mean is 1."""
    exponent = (score - config.score_mean) / config.score_std / config.beta
    return min(math.exp(min(exponent, 700.0)), config.max_weight) / config.normaliser


def fit(scores: list[float], config: Config) -> Config:
    """Set mean, deviation and normaliser from the whole pool."""
    mean, std = moments(scores)
    fitted = replace(config, score_mean=mean, score_std=std, normaliser=1.0)
    return replace(fitted, normaliser=math.fsum(weigh(score, fitted) for score in scores) / len(scores))


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """Every response with its weight: rows {response, weight}."""
    usable = eligible(candidates, config.truncated, config.penalty)
    return [{"response": c["text"], "weight": weigh(c["score"], config)} for c in usable]


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Weighted negative log-likelihood.

    Args:
        forwards: policy_logp [B, R].
        batch: weight [B]; count = response tokens of the step, whatever their weights.
    """
    nll = -ops.sequence_sum(forwards["policy_logp"], batch.mask)
    total = (batch.weight * nll).sum()
    tokens, rows = batch.mask.sum(), float(nll.shape[0])
    metrics = {
        "nll": ops.measure(nll.sum(), tokens),
        "weighted_nll": ops.measure(total, tokens),
        "weight": ops.measure(batch.weight.sum(), rows),
        "clipped": ops.measure((batch.weight * config.normaliser >= config.max_weight).sum(), rows),
    }
    return ops.share(total, batch.count), metrics
