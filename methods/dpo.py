"""Direct preference optimisation and its relatives: one loss name, one formula.

h is how much more the policy prefers the chosen response than the reference does. Sources: Rafailov et al. 2023 (sigmoid),
its repository (cdpo), Chowdhury et al. 2024 (robust), Azar et al. 2023 (ipo), Zhao et al. 2023 and Liu et al. 2023 (hinge).
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from methods import ops
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, best_first, check_truncated, eligible, rank
from methods.rows import pair_index

loop = "offline"
unit = "row"
columns = ("chosen", "rejected")
forwards = ("policy_logp", "reference_logp")

Loss = Literal["sigmoid", "cdpo", "robust", "ipo", "ipo-sum", "hinge", "sigmoid-lengthnorm"]
_AVERAGED = ("ipo", "sigmoid-lengthnorm")  # log-probs a token; the others sum over the response
_SMOOTHED = ("cdpo", "robust")


@dataclass(frozen=True)
class Config:
    """beta is tuned anew for every loss: their scales differ."""

    # ipo averages over tokens as its authors are said to want, ipo-sum is the form of most repositories (METHODS K13)
    loss: Literal["sigmoid", "cdpo", "robust", "ipo", "ipo-sum", "hinge", "sigmoid-lengthnorm"] = "sigmoid"
    beta: float = 0.1  # strength of the tie to the reference; the paper's repository
    label_smoothing: float = 0.0  # share of wrong labels; cdpo and robust only, 0.1 in METHODS 7.1
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # select; ours
    penalty: float = 1.0  # select; off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        check_loss("dpo", self.loss, self.beta, self.label_smoothing)
        check_truncated("dpo", self.truncated, self.penalty)


PRESETS = {"cdpo": {"loss": "cdpo", "label_smoothing": 0.1}, "robust": {"loss": "robust", "label_smoothing": 0.1}}


def check_loss(method: str, loss: str, beta: float, label_smoothing: float) -> None:
    """Raise ValueError for a loss that does not exist, or a setting that it would ignore."""
    if loss not in get_args(Loss):
        raise ValueError(f"{method}: loss {loss!r}: want one of {', '.join(get_args(Loss))}")
    if not beta > 0:
        raise ValueError(f"{method}: beta {beta}: want a number > 0")
    if loss in _SMOOTHED and not 0 < label_smoothing < 0.5:
        raise ValueError(f"{method}: loss {loss} needs label_smoothing in 0 .. 0.5, found {label_smoothing}")
    if loss not in _SMOOTHED and label_smoothing != 0:
        raise ValueError(
            f"{method}: loss {loss} ignores label_smoothing {label_smoothing}: set 0, or loss cdpo or robust"
        )


def preference_loss(h: Tensor, loss: Loss, beta: float, label_smoothing: float) -> Tensor:
    """Loss of each pair [N] from its h [N] (over tokens summed or averaged: the caller's choice)."""
    if loss in ("sigmoid", "sigmoid-lengthnorm"):
        return -logsigmoid(beta * h)
    if loss == "cdpo":
        return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)
    if loss == "robust":
        right, wrong = logsigmoid(beta * h), logsigmoid(-beta * h)
        return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)
    if loss == "hinge":
        return relu(1 - beta * h)
    return (h - 1 / (2 * beta)).square()


def log_ratios(forwards: Forwards, mask: Tensor, averaged: bool = False) -> Tensor:
    """log policy - log reference of each response, [B] nats: summed over its tokens, or averaged.

    Summed, this is DPO's implicit reward without its factor beta: a reward model that needs no head.
    """
    gap = forwards["policy_logp"].float() - forwards["reference_logp"].float()
    return ops.sequence_mean(gap, mask) if averaged else ops.sequence_sum(gap, mask)


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """The best against the worst response by (branch, score); no pair where all are equal.

    Returns:
        at most one row {chosen, rejected, grade}; grade 0, for nobody stated a strength.
    """
    order = best_first(eligible(candidates, config.truncated, config.penalty), rng)
    if len(order) < 2 or rank(order[0]) == rank(order[-1]):
        return []
    return [{"chosen": order[0]["text"], "rejected": order[-1]["text"], "grade": 0}]


def pair_losses(forwards: Forwards, batch: Batch, loss: Loss, beta: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Loss of every pair [N], and where its chosen response lies [N] int64."""
    chosen, rejected = pair_index(batch.group, batch.rank)
    ratios = log_ratios(forwards, batch.mask, loss in _AVERAGED)
    return preference_loss(ratios[chosen] - ratios[rejected], loss, beta, smoothing), chosen


def pair_metrics(forwards: Forwards, batch: Batch, beta: float) -> Metrics:
    """What every pairwise method reports: implicit rewards (beta once), accuracy, log-probs and lengths of both sides.

    A falling logp_chosen under a growing margin is likelihood displacement.
    """
    with torch.no_grad():
        chosen, rejected = pair_index(batch.group, batch.rank)
        reward = beta * log_ratios(forwards, batch.mask)
        logp = ops.sequence_sum(forwards["policy_logp"], batch.mask)
        length = batch.mask.sum(-1)
        values = {
            "accuracy": ops.pair_accuracy(reward[chosen], reward[rejected]),
            "margin": reward[chosen] - reward[rejected],
            "reward_chosen": reward[chosen],
            "reward_rejected": reward[rejected],
            "logp_chosen": logp[chosen],
            "logp_rejected": logp[rejected],
            "length_chosen": length[chosen],
            "length_rejected": length[rejected],
        }
        return {name: ops.measure(value.sum(), float(chosen.numel())) for name, value in values.items()}


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Mean loss of the step's pairs.

    Args:
        forwards: policy_logp, reference_logp [B, R]; equal ones give ln 2 (sigmoid, cdpo, robust).
        batch: pairs; count = pairs of the step.
    """
    losses, _ = pair_losses(forwards, batch, config.loss, config.beta, config.label_smoothing)
    metrics = pair_metrics(forwards, batch, config.beta)
    metrics["preference_loss"] = ops.measure(losses.sum(), float(losses.numel()))
    return ops.share(losses.sum(), batch.count), metrics
