"""Reward model from rankings: all comparisons of K responses to one prompt, in one batch.

Source: Ouyang et al. 2022 (InstructGPT), equation 1. Keeping a prompt's comparisons together is what keeps them from being
learned by heart; K = 2 is Bradley-Terry.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from methods import ops
from methods.batch import Batch, Forwards, Metrics
from methods.rows import ranked_lists

loop = "offline"
unit = "row"
columns = ("responses", "scores")
forwards = ("reward",)


@dataclass(frozen=True)
class Config:
    """Nothing to set: equal scores make no comparison, every prompt weighs the same."""


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Mean of -log sigmoid(better - worse) over a prompt's comparisons, mean over prompts.

    Args:
        forwards: reward [B], raw.
        batch: rankings with score; count = rankings of the step.

    Returns:
        loss [] a ranking (0 of one without comparisons); metrics accuracy, gap (a comparison), comparisons (a ranking).
    """
    index, present = ranked_lists(batch.group, batch.score)
    reward, score = forwards["reward"].float()[index], batch.score[index]
    gap = reward.unsqueeze(2) - reward.unsqueeze(1)  # [G, better, worse]
    better = (score.unsqueeze(2) > score.unsqueeze(1)) & present.unsqueeze(2) & present.unsqueeze(1)
    pairs = better.sum((1, 2))
    total = (torch.where(better, -logsigmoid(gap), 0.0).sum((1, 2)) / pairs.clamp(min=1)).sum()
    rows = float(index.shape[0])
    metrics = {
        "ranking_loss": ops.measure(total, rows),
        "accuracy": ops.measure((better & (gap > 0)).sum(), pairs.sum()),
        "gap": ops.measure(torch.where(better, gap, 0.0).sum(), pairs.sum()),
        "comparisons": ops.measure(pairs.sum(), rows),
    }
    return ops.share(total, batch.count), metrics
