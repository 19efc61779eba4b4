"""RRHF: rank responses by their mean log-prob as the scores rank them, and imitate the best.

Source: Yuan et al. 2023 (arXiv 2304.05302), equations 1 to 4. As in the paper and not as in its code, which loses the length
normalisation (labels are zeroed in place) and averages the imitation term over pads.
"""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu

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
    """Weights of the two terms, and which candidates make a ranking."""

    rank_coef: float = 1.0  # the paper: 10 and 100 are worse
    sft_coef: float = 1.0  # the paper
    size: int = 6  # responses a prompt: 4 samples and 2 given ones in the paper; 0 = all
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if not (self.rank_coef >= 0 and self.sft_coef >= 0 and self.rank_coef + self.sft_coef > 0):
            raise ValueError(f"rrhf: rank_coef {self.rank_coef}, sft_coef {self.sft_coef}: want >= 0 and not both 0")
        check_size("rrhf", self.size)
        check_truncated("rrhf", self.truncated, self.penalty)


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """One ranking {responses, scores}, best first; `size` responses from best to worst; none where all are equal."""
    return ranked_row(spread(best_first(eligible(candidates, config.truncated, config.penalty), rng), config.size))


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Sum over misranked pairs of how much they are, plus the best response's loss summed over its tokens.

    Args:
        forwards: policy_logp [B, R].
        batch: rankings with score; of several best responses their mean is imitated; count = rankings of the step.

    Returns:
        loss [] a ranking; metrics rank_loss, sft_loss (a ranking), accuracy (pairs ranked right).
    """
    index, present = ranked_lists(batch.group, batch.score)
    mean = ops.sequence_mean(forwards["policy_logp"], batch.mask)[index]
    score = batch.score[index]
    better = (score.unsqueeze(2) > score.unsqueeze(1)) & present.unsqueeze(2) & present.unsqueeze(1)
    excess = mean.unsqueeze(1) - mean.unsqueeze(2)  # [G, i, j]: how far j, which is worse, lies above i
    ranking = torch.where(better, relu(excess), 0.0).sum()
    best = present & (score == score[:, :1])
    logp = ops.sequence_sum(forwards["policy_logp"], batch.mask)[index]
    imitation = -(torch.where(best, logp, 0.0).sum(-1) / best.sum(-1)).sum()
    rows = float(index.shape[0])
    metrics = {
        "rank_loss": ops.measure(ranking, rows),
        "sft_loss": ops.measure(imitation, rows),
        "accuracy": ops.measure((better & (excess < 0)).sum(), better.sum()),
    }
    return ops.share(config.rank_coef * ranking + config.sft_coef * imitation, batch.count), metrics
