"""A campaign: one YAML file, complete, from the base model to the report."""

from typing import Literal

from pydantic import Field, model_validator

from configs.bakeoff import BakeOff
from configs.certify import Certify, Leakage
from configs.fields import Name, Natural, Share, Strict
from configs.gates import Gate, JudgeModel, Matrix
from configs.recipes import (
    Adopt,
    Annotate,
    Compare,
    Evaluate,
    Limits,
    Online,
    Pretrain,
    Probe,
    Reward,
    Sample,
    Select,
    Source,
    Train,
)
from configs.runtime import Runtime


class Data(Strict):
    """Where rows come from. `held_out` is the share of prompts kept for evaluation, by hash."""

    documents: tuple[Source, ...] = ()
    demonstrations: tuple[Source, ...] = ()
    prompts: tuple[Source, ...] = ()
    preferences: tuple[Source, ...] = ()
    rankings: tuple[
        Source, ...
    ] = ()  # of K responses or with attributes, for reward models whose method learns from those
    held_out: Share = 0.2
    max_rejected: Share = 0.05


class Base(Strict):
    """The base model: trained here, or adopted."""

    pretrain: Pretrain | None = None
    adopt: Adopt | None = None

    @model_validator(mode="after")
    def _one(self) -> "Base":
        if (self.pretrain is None) == (self.adopt is None):
            raise ValueError("base needs exactly one of pretrain, adopt")
        return self


class Round(Strict):
    """One entry of `rounds:`: a method, how preferences are got, how reward models are refreshed.

    A section given here replaces the campaign's section of that name, whole.
    """

    method: Name = "rejection"
    version: Name | None = None  # v1, v2, .. by default
    annotate: Annotate | Literal["none"] | None = None
    reward: Literal["refresh", "keep"] = "refresh"
    probe: Probe | Literal["none"] | None = None
    sample: Sample | None = None
    select: Select | None = None
    train: Train | None = None
    online: Online | None = None
    rows: Literal["samples", "preferences", "demonstrations"] = (
        "samples"  # offline methods: own scored samples, all preferences so far, or the rows of SFT, scored where it selects
    )
    start: Literal["base", "accepted", "sft"] | None = (
        None  # None: base where the method imitates (Llama 2), else accepted
    )


class Campaign(Strict):
    """The whole of a config file."""

    name: Name
    seed: Natural = 0
    judge: Literal["world", "stories", "none"] = "world"
    code_drift: Literal["recompute", "accept"] = "recompute"
    data: Data
    base: Base
    limits: Limits = Limits()
    sft: Train = Train()
    rewards: dict[Literal["helpfulness", "safety"], Reward] = Field(default_factory=dict)
    leakage: Leakage = Leakage()
    certify: Certify = Certify()
    reward_bases: dict[Literal["helpfulness", "safety"], Base] = Field(
        default_factory=dict
    )  # instead of the chat model
    annotate: Annotate = Annotate()
    probe: Probe | Literal["none"] = Probe()
    sample: Sample = Sample()
    select: Select = Select()
    train: Train = Train()
    online: Online = Online()
    rounds: tuple[Round, ...] = ()
    bake_off: BakeOff | None = None  # instead of rounds
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    judge_model: JudgeModel | None = None
    matrix: Matrix = Matrix()
    compare: Compare = Compare()
    runtime: Runtime = Runtime()

    def stops(self) -> tuple[str, ...]:
        """Where a run can be asked to stop (`until`), in order."""
        rounds = (label for i, entry in enumerate(self.rounds, 1) for label in (f"r{i}-rewards", str(entry.version)))
        return ("v0", *rounds)
