"""Preference ranking optimisation: each response of a ranking against all worse ones, sharper where scores differ more.

Source: Song et al. 2023 (arXiv 2306.17492), equations 5 to 8. The score difference multiplies, as in the authors' code; the
paper writes it as a temperature that divides.
"""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, best_first, check_size, check_truncated, eligible, ranked_row, spread
from methods.rows import ranked_lists

loop = "offline"
unit = "row"
columns = ("responses", "scores")
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """Weight of the imitation term, and which candidates make a ranking."""

    sft_coef: float = 0.05  # times (responses - 1)^2; the paper
    size: int = 4  # responses a prompt; 0 = all; ours, the paper goes from 2 to 5
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if not self.sft_coef >= 0:
            raise ValueError(f"pro: sft_coef {self.sft_coef}: want a number >= 0")
        check_size("pro", self.size)
        check_truncated("pro", self.truncated, self.penalty)


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """One ranking {responses, scores}, best first; `size` responses from best to worst; none where all are equal."""
    return ranked_row(spread(best_first(eligible(candidates, config.truncated, config.penalty), rng), config.size))


def ranking_loss(mean_logp: Tensor, score: Tensor, present: Tensor) -> Tensor:
    """Sum over all but the last response k of -log(its share against the worse ones), [G].

    Args:
        mean_logp, score: [G, K], sorted by descending score.
        present: [G, K] bool, a prefix of each row.
    """
    width = score.shape[1]
    worse = torch.ones(width, width, dtype=torch.bool, device=score.device).triu(1) & present.unsqueeze(1)
    sharpness = torch.where(worse, score.unsqueeze(2) - score.unsqueeze(1), 0.0)  # [G, k, i]
    own = mean_logp * sharpness.amax(-1)
    others = (mean_logp.unsqueeze(1) * sharpness).masked_fill(~worse, -torch.inf)
    denominator = torch.cat([own.unsqueeze(-1), others], -1).logsumexp(-1)
    return (denominator - own).sum(-1)  # nothing of those that have no worse one


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Ranking term plus sft_coef (n - 1)^2 times the best response's loss, summed over its tokens.

    Args:
        forwards: policy_logp [B, R].
        batch: rankings with score, in any order; of several best responses the first is imitated; count = rankings.
    """
    index, present = ranked_lists(batch.group, batch.score)
    mean = ops.sequence_mean(forwards["policy_logp"], batch.mask)[index]
    ranking = ranking_loss(mean, batch.score[index], present).sum()
    nll = -ops.sequence_sum(forwards["policy_logp"], batch.mask)[index[:, 0]]
    imitation = ((present.sum(-1) - 1).square() * nll).sum()
    rows = float(index.shape[0])
    metrics = {"rank_loss": ops.measure(ranking, rows), "sft_loss": ops.measure(nll.sum(), rows)}
    return ops.share(ranking + config.sft_coef * imitation, batch.count), metrics
