"""Recipes of what judges versions and stops or chooses: the gate, the independent judge, the matrix. Numbers are ours."""

from typing import Literal

from configs.fields import Count, Share, Strict
from configs.recipes import Limits

Action = Literal["off", "warn", "reject"]


class Limit(Strict):
    """A level and what follows when a version is beyond it."""

    at: float
    action: Literal["warn", "reject"] = "warn"


class Gate(Strict):
    """When a version is accepted, warned about or rejected, against the best accepted version before it.

    One rule that rejects is enough. A rule whose measure nobody took says nothing. `significantly`: the whole 95 % interval
    of the paired difference lies on one side of 0. The best is the accepted version that the most trusted measure last put
    on average no lower than the best before it, so that small losses add up until one is significant. A rejected version
    is never built upon: the campaign goes on from the best one (`fall_back`) or ends there (`stop`).
    """

    on_reject: Literal["fall_back", "stop"] = "fall_back"
    worse: Action = (
        "reject"  # significantly worse by the most trusted measure: gold, else the judge model, else the rewards
    )
    judge: Action = "warn"  # significantly worse by the independent judge model, where gold has the say
    parted: Action = "warn"  # the reward models say significantly better, the most trusted measure no better on average
    win_rate: Limit | None = Limit(
        at=0.5
    )  # upper end of the win rate's interval below this, by the most trusted measure
    kl: Limit | None = None  # mean KL to v0 above this, in nats a response; no level suits every response length
    shorter: Limit | None = Limit(at=0.5)  # mean length below this share of the best version's (METHODS 4.3)
    longer: Limit | None = Limit(at=2.0)  # mean length above this multiple of it (METHODS 4.3)
    missing_eos: Limit | None = Limit(at=0.2)  # share of responses cut at the limit above this (METHODS 5.4)
    refusals: Limit | None = Limit(at=0.1)  # harmless requests refused, share above the best version's


class Verdict(Strict):
    """What one gate stage judges."""

    rules: Gate = Gate()
    version: str = "v1"
    best: str = "v0"  # the best accepted version before it


class JudgeModel(Strict):
    """Reward models that steer nothing: as the campaign's, but trained on prompts kept apart and from another seed.

    Their preferences come from two responses of v0, or from given pairs whose prompts are kept apart.
    """

    share: Share = 0.1  # of the training prompts, by hash: no round sees them
    prompts: Count = 400  # at most so many are answered and annotated


class Matrix(Strict):
    """Every version's held-out responses under every round's reward models and the judges; best of n of each round."""

    versions: tuple[str, ...] = ()  # labels of the `versions` inputs, in their order
    steered: tuple[str, ...] = ()  # for each version the round whose reward models steered it; empty: none did
    rounds: tuple[str, ...] = ()  # labels of the reward models, in the order of the `rewards` inputs
    models: tuple[Count, ...] = ()  # how many of the `rewards` inputs each round has
    scored: tuple[str, ...] = ()  # for each of the `scored` inputs the source of the samples to look at ("round-1")
    threshold: float = -1.7346  # raw safety score = logit(0.15) (METHODS 4.1)
    bootstrap: Count = 1000
    prompts: Count = 300  # of each round's samples, for the best-of-n curve
    judge: Literal["world", "stories", "none"] = "world"
    limits: Limits = Limits()
    seed: int = 0
