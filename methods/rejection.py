"""Rejection sampling: keep the best of K responses to each prompt and fine-tune on them (best-of-K, RAFT's `local`).

Source: Llama 2 (Touvron et al. 2023), section 3.2.3; RAFT (Dong et al. 2023) differs in K and schedule only. RAFT's `top`,
a share of the whole batch, is left out: it keeps easy prompts and starves hard ones.
"""

import random
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods import sft
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, best_first, check_truncated, eligible

loop = "offline"
unit = "token"
columns = ("messages",)
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """Which candidates may win, and how many do."""

    keep: int = 1  # responses a prompt (METHODS 3.4)
    take: Literal["best", "worst"] = (
        "best"  # worst: a learner that must lose, to see whether a comparison notices; ours
    )
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # without EOS, yet often scored well (METHODS 3.8)
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"rejection: keep {self.keep}: want at least 1")
        if self.take not in ("best", "worst"):
            raise ValueError(f"rejection: take {self.take!r}: want best or worst")
        check_truncated("rejection", self.truncated, self.penalty)


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """The best (or worst) `keep` responses by (branch, score); among equals every one is equally likely.

    Returns:
        rows {response}, in that order; fewer where there are fewer distinct responses, none where all are excluded.
    """
    usable = eligible(candidates, config.truncated, config.penalty)
    ordered = best_first(usable, rng)
    ordered = ordered if config.take == "best" else ordered[::-1]
    return [{"response": candidate["text"]} for candidate in ordered[: config.keep]]


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """`sft.loss` on the selected responses: policy_logp [B, R] -> nats a token."""
    return sft.loss(forwards, batch, sft.Config())
