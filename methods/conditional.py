"""Offline RL by conditioning: learn which response follows which reward, then ask for a high one (Decision Transformer).

Source: Hu et al. 2023 (arXiv 2308.12050), conditional alignment; the text of the condition is OpenRLHF's.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from methods import sft
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, check_truncated, eligible, moments, quantile

loop = "offline"
unit = "token"
columns = ("messages",)
forwards = ("policy_logp",)


OFTEN = 0.05  # of the pool: what is asked for was seen that often, else nothing was learned about it; ours


@dataclass(frozen=True)
class Config:
    """How a score is written into the prompt. The fitted constants belong to the model: sampling needs the same ones."""

    prefix: str = " <rm_score>: "  # OpenRLHF
    decimals: int = 2  # OpenRLHF; fewer give a small model less to learn
    goal: float = 2.0  # z-score asked for in sampling, not above `best`; ours
    score_mean: float = 0.0  # set by `fit`
    score_std: float = 1.0  # set by `fit`; unbiased, fp64
    best: float = 100.0  # z-score that OFTEN of the pool reach; set by `fit`
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if self.decimals < 0:
            raise ValueError(f"conditional: decimals {self.decimals}: want at least 0")
        if not self.score_std > 0:
            raise ValueError(f"conditional: score_std {self.score_std}: want a number > 0")
        check_truncated("conditional", self.truncated, self.penalty)


def fit(scores: list[float], config: Config) -> Config:
    """Set mean, deviation and best z-score from the whole pool."""
    mean, std = moments(scores)
    return replace(config, score_mean=mean, score_std=std, best=(quantile(scores, 1 - OFTEN) - mean) / std)


def write(z: float, config: Config) -> str:
    """A z-score as it stands in the prompt: always the same number of decimals, never "-0"."""
    text = f"{z:.{config.decimals}f}"
    return config.prefix + (text.removeprefix("-") if float(text) == 0 else text)


def target(config: Config) -> str:
    """What to append to the last user turn in sampling and evaluation."""
    return write(min(config.goal, config.best), config)


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """Every response with its score in words: rows {response, condition}; the condition ends the last user turn."""
    usable = eligible(candidates, config.truncated, config.penalty)
    return [
        {"response": c["text"], "condition": write((c["score"] - config.score_mean) / config.score_std, config)}
        for c in usable
    ]


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """`sft.loss` under conditioned prompts: policy_logp [B, R] -> nats a token."""
    return sft.loss(forwards, batch, sft.Config())
