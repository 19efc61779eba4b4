"""DPO that moves from easy pairs to hard ones.

A pair's grade says how easy it is. At progress t of training a hard pair is drawn with probability t, an easy one otherwise;
`loss` weights the pairs of a uniform draw so that its expected gradient is that of this draw, `order` makes the draw itself.
Source: Xu et al. 2023 (arXiv 2310.02263), section 3.3; the linear rule is from memory.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods import dpo, ops
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, best_first, check_truncated, eligible, rank

loop = "offline"
unit = "row"
columns = ("chosen", "rejected", "grade")
forwards = ("policy_logp", "reference_logp")

_EASY, _HARD = 3, 1  # grades that `select` gives


@dataclass(frozen=True)
class Config:
    """The loss is DPO's; the rest says which pairs are easy and when they count."""

    direction: Literal["easy-to-hard", "hard-to-easy", "mixed"] = "easy-to-hard"  # the paper; the others to compare
    by: Literal["weight", "order"] = "weight"  # order: the loop draws by `order`, so the loss weights all pairs alike
    easy_grade: float = 2.0  # pairs of this grade or more are easy; ours
    hard_share: float = 0.5  # share of hard pairs among the rows; `select` makes half; ours
    loss: Literal["sigmoid", "hinge"] = "sigmoid"  # the paper compares DPO and SLiC
    beta: float = 0.1  # as in dpo
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # select; ours
    penalty: float = 1.0  # select; off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if self.direction not in ("easy-to-hard", "hard-to-easy", "mixed"):
            raise ValueError(f"curriculum-dpo: direction {self.direction!r}: want easy-to-hard, hard-to-easy or mixed")
        if self.by not in ("weight", "order"):
            raise ValueError(f"curriculum-dpo: by {self.by!r}: want weight or order")
        if not 0 < self.hard_share < 1:
            raise ValueError(f"curriculum-dpo: hard_share {self.hard_share}: want a share between 0 and 1")
        dpo.check_loss("curriculum-dpo", self.loss, self.beta, 0.0)
        check_truncated("curriculum-dpo", self.truncated, self.penalty)


def hard_probability(progress: float, config: Config) -> float:
    """Probability of drawing a hard pair at `progress` 0 .. 1."""
    if config.direction == "mixed":
        return config.hard_share
    return progress if config.direction == "easy-to-hard" else 1 - progress


def order(rows: Sequence[Row], draws: int, config: Config, rng: random.Random) -> list[int]:
    """Row indices of a whole training run, in order: a function of rows and generator only, so a resumed run repeats it.

    Both pools are shuffled and cycled without replacement.

    Raises:
        ValueError: no easy or no hard pair.
    """
    easy = [i for i, row in enumerate(rows) if (row["grade"] or 0) >= config.easy_grade]
    hard = [i for i, row in enumerate(rows) if (row["grade"] or 0) < config.easy_grade]
    if not easy or not hard:
        raise ValueError(
            f"curriculum-dpo: {len(easy)} easy and {len(hard)} hard pairs (easy_grade {config.easy_grade}): want some of both"
        )
    waiting: dict[bool, list[int]] = {False: [], True: []}
    drawn = []
    for i in range(draws):
        is_hard = rng.random() < hard_probability(i / max(draws - 1, 1), config)
        if not waiting[is_hard]:
            pool = hard if is_hard else easy
            waiting[is_hard] = rng.sample(pool, len(pool))
        drawn.append(waiting[is_hard].pop())
    return drawn


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """An easy pair, best against worst, and a hard one, best against the next that is worse; none where all are equal.

    With two distinct scores both are the same pair: it counts early and late.
    """
    ordered = best_first(eligible(candidates, config.truncated, config.penalty), rng)
    worse = [c for c in ordered if rank(c) < rank(ordered[0])]
    if not worse:
        return []
    return [
        {"chosen": ordered[0]["text"], "rejected": worse[-1]["text"], "grade": _EASY},
        {"chosen": ordered[0]["text"], "rejected": worse[0]["text"], "grade": _HARD},
    ]


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """DPO's loss, each pair weighted by how much likelier it is to be drawn now than by a uniform draw.

    Args:
        forwards: policy_logp, reference_logp [B, R].
        batch: pairs with grade; progress; count = pairs of the step.
    """
    losses, chosen = dpo.pair_losses(forwards, batch, config.loss, config.beta, 0.0)
    is_hard = batch.grade[chosen] < config.easy_grade
    if config.by == "weight":
        probability = hard_probability(batch.progress, config)
        weight = torch.where(is_hard, probability / config.hard_share, (1 - probability) / (1 - config.hard_share))
    else:
        weight = torch.ones_like(losses)
    pairs = float(losses.numel())
    metrics = dpo.pair_metrics(forwards, batch, config.beta)
    metrics["preference_loss"] = ops.measure(losses.sum(), pairs)
    metrics["hard_share"] = ops.measure((weight * is_hard).sum(), weight.sum())
    return ops.share((weight * losses).sum(), batch.count), metrics
