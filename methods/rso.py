"""Statistical rejection sampling optimisation: pairs from the optimal policy, drawn out of many samples of the current one.

Source: Liu et al. 2023 (arXiv 2309.06657), sections 3.2 and 3.3.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import relu

from methods import dpo, ops
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, check_truncated, comparable, eligible
from methods.rows import pair_index

loop = "offline"
unit = "row"
columns = ("chosen", "rejected")
forwards = ("policy_logp", "reference_logp")


@dataclass(frozen=True)
class Config:
    """beta shapes the draw, gamma the loss; in the paper's optimum both are one number, its experiments use two."""

    beta: float = 0.5  # reward units; 0 = the best ones, large = at random; the paper
    gamma: float = 0.05  # the paper
    accepted: int = 8  # responses a prompt that are drawn; the paper: 8 of 64
    pairs: Literal["first-round", "tournament"] = (
        "first-round"  # accepted / 2 pairs, or accepted - 1; the paper's main rows
    )
    loss: Literal["sigmoid-norm", "hinge-norm", "hinge"] = "sigmoid-norm"  # hinge has no reference (SLiC); the paper
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"rso: beta {self.beta}: want a number >= 0")
        if not self.gamma > 0:
            raise ValueError(f"rso: gamma {self.gamma}: want a number > 0")
        if self.accepted < 2:
            raise ValueError(f"rso: accepted {self.accepted}: want at least 2 to make a pair")
        if self.pairs not in ("first-round", "tournament"):
            raise ValueError(f"rso: pairs {self.pairs!r}: want first-round or tournament")
        if self.loss not in ("sigmoid-norm", "hinge-norm", "hinge"):
            raise ValueError(f"rso: loss {self.loss!r}: want sigmoid-norm, hinge-norm or hinge")
        check_truncated("rso", self.truncated, self.penalty)


def draw(rewards: Sequence[float], accepted: int, beta: float, rng: random.Random) -> list[int]:
    """Indices of `accepted` distinct responses, each in turn with probability ~ exp(reward / beta) among those left.

    The law of the paper's algorithm when every trial proposes a random one of those left; a scan in their order would
    favour early ones. beta 0 takes the best, equals at random.
    """
    left = list(range(len(rewards)))
    rng.shuffle(left)
    if beta == 0:
        return sorted(left, key=lambda i: -rewards[i])[:accepted]
    drawn: list[int] = []
    while left and len(drawn) < accepted:
        highest = max(rewards[i] for i in left)
        weights = [math.exp((rewards[i] - highest) / beta) for i in left]
        place = rng.choices(range(len(left)), weights)[0]
        drawn.append(left.pop(place))
    return drawn


def first_round(drawn: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Neighbours in the (random) order of the draw, better one first; a tie makes no pair."""
    couples = [(drawn[i], drawn[i + 1]) for i in range(0, len(drawn) - 1, 2)]
    return [_better_first(a, b, rewards) for a, b in couples if rewards[a] != rewards[b]]


def tournament(drawn: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Every match of a knock-out, better one first: one pair fewer than there are responses; a tie makes no pair."""
    pairs, standing = [], list(drawn)
    while len(standing) > 1:
        pairs += first_round(standing, rewards)
        matches = [standing[i : i + 2] for i in range(0, len(standing), 2)]
        standing = [max(match, key=lambda i: rewards[i]) for match in matches]
    return pairs


def _better_first(a: int, b: int, rewards: Sequence[float]) -> tuple[int, int]:
    return (a, b) if rewards[a] > rewards[b] else (b, a)


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """Draw from the optimal policy, pair, label by the score: rows {chosen, rejected, grade}, grade 0."""
    usable = eligible(candidates, config.truncated, config.penalty)
    rewards = comparable(usable)
    drawn = draw(rewards, config.accepted, config.beta, rng)
    rng.shuffle(drawn)  # the draw tends to take good ones first: neighbours would be of one kind
    pairs = (first_round if config.pairs == "first-round" else tournament)(drawn, rewards)
    return [{"chosen": usable[w]["text"], "rejected": usable[r]["text"], "grade": 0} for w, r in pairs]


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """sigmoid-norm is DPO's loss, hinge-norm its hinge, hinge the same on raw log-probs.

    Args:
        forwards: policy_logp, reference_logp [B, R].
        batch: pairs; count = pairs of the step.
    """
    if config.loss == "hinge":
        chosen, rejected = pair_index(batch.group, batch.rank)
        logp = ops.sequence_sum(forwards["policy_logp"], batch.mask)
        losses = relu(1 - config.gamma * (logp[chosen] - logp[rejected]))
    else:
        kind: dpo.Loss = "sigmoid" if config.loss == "sigmoid-norm" else "hinge"
        losses, _ = dpo.pair_losses(forwards, batch, kind, config.gamma, 0.0)
    metrics = dpo.pair_metrics(forwards, batch, config.gamma)
    metrics["preference_loss"] = ops.measure(losses.sum(), float(losses.numel()))
    return ops.share(losses.sum(), batch.count), metrics
