"""What the claims share: one laid-out bake-off whose stages are made once, and how a difference is judged.

A claim is a file of this folder with TEXT (what a source says), SOURCE, MATTERS (the smallest effect worth the name, in the
unit of the measure), UNIT, and two functions: `stages(lab)`, what it needs, and `measure(lab)`, the effect, positive where the
source is right, or several by name where a claim has parts. Nothing is tuned until it agrees: settings are those of
configs/bake-off.yaml, what a claim changes stands in its file, and both were written before the first look.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from configs import Campaign, Competitor, Entrant, load, read_entrant, ready
from engine.evaluate import add_gold
from engine.statistics import spearman
from flows.bakeoff import START, Shared, trained
from storage import Store
from tasks import Artifact, Run, annotate, train

RESAMPLES = 10_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Effect:
    """An effect; positive is what the source says. `note` holds the numbers behind it.

    draws: [RESAMPLES] the effect in bootstrap samples, from which its 95 % interval is read.
    """

    value: float
    draws: np.ndarray = field(repr=False)
    count: int
    note: str = ""

    @property
    def low(self) -> float:
        return float(np.quantile(self.draws, 0.025))

    @property
    def high(self) -> float:
        return float(np.quantile(self.draws, 0.975))

    @property
    def error(self) -> float:
        """Standard error, from the interval."""
        return (self.high - self.low) / (2 * 1.96)

    def power(self, matters: float) -> float:
        """How likely an effect of `matters` would have been told from 0 with this error (two-sided, 5 %)."""
        if self.error == 0:
            return 1.0
        shift = matters / self.error
        normal = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
        return normal(shift - 1.96) + normal(-shift - 1.96)

    def verdict(self, matters: float) -> str:
        """Reproduced: the interval is above 0. Not reproduced: it is below what would matter. Else nobody can tell."""
        if self.low > 0:
            return "reproduced"
        return "not reproduced" if self.high < matters else "not decided"


Effects = Effect | Mapping[str, Effect]


class Lab:
    """One seed of a bake-off, laid out; what claims add to it has names of their own."""

    def __init__(self, store: Store, config: str = "bake-off", seed: int = 1) -> None:
        whole = load(config, seed=seed)
        assert whole.bake_off is not None
        self.run = Run(whole, store, whole.runtime, mode="plan")
        self.seed, self.bake_off = seed, whole.bake_off
        self.campaign: Campaign = whole
        self.shared = Shared(self.run, whole, seed)
        self.policies: dict[str, Artifact] = {START: self.shared.start}
        self.evaluations: dict[str, Artifact] = {}

    def ready(self, name: str, entrant: Entrant | None = None, iterations: int = 0, **settings: Any) -> Competitor:
        """A competitor of configs/methods, or any entrant.

        iterations: of an online one, instead of what the budget pays.  settings: of the family's recipe.
        """
        made = ready(name, entrant or read_entrant(name), self.bake_off, self.campaign, **settings)
        if not iterations:
            return made
        (only,) = made.rounds
        assert only.online is not None
        shorter = only.online.model_copy(update={"iterations": iterations})
        return made.model_copy(update={"rounds": (only.model_copy(update={"online": shorter}),)})

    def policy(
        self,
        name: str,
        entrant: Entrant | None = None,
        start: str = START,
        among: Shared | None = None,
        **settings: Any,
    ) -> Artifact:
        """A competitor's model; `start` names the policy that it begins from.

        among: a `variant` in which it learns, where the claim is about what competitors share.
        settings: of `ready`, where the claim is about one of them.
        """
        if name not in self.policies:
            made = self.ready(name, entrant, **settings)
            self.policies[name] = trained(self.run, among or self.shared, made, start=self.policy(start))
        return self.policies[name]

    def evaluation(self, name: str, **how: Any) -> Artifact:
        """Its held-out responses; the prompts, and the reward models that they are scored by, are the same for all."""
        if name not in self.evaluations:
            self.evaluations[name] = self.shared.judge(name, self.policy(name, **how))
        return self.evaluations[name]

    def variant(self, name: str, **parts: Any) -> Shared:
        """What competitors share with some of it replaced: rewards, preferences, .."""
        other = copy.copy(self.shared)
        other.mark, other.scored = f"{self.shared.mark}-{name}", {}
        vars(other).update(parts)
        return other

    @cached_property
    def pool(self) -> Artifact:
        """The scored samples of the start that all offline methods share."""
        return self.shared.pool(self.ready("rejection").rounds[0], "pool", self.shared.start)

    @cached_property
    def writer(self) -> Artifact:
        """Another model than the start, from which the bake-off's given pairs are: another seed, half of its SFT."""
        shared, sft = self.shared, self.campaign.sft
        half = sft.model_copy(update={"epochs": sft.epochs / 2, "seed": sft.seed + 1000})
        return train(self.run, shared.label("writer"), half, model=shared.base, rows=[shared.demonstrations])

    @cached_property
    def dpo_on_others_pairs(self) -> Artifact:
        """Held-out responses of dpo-others: as dpo-given, all of it, on annotated pairs of the other writer."""
        shared, who = self.shared, {"policy_a": self.writer, "policy_b": self.writer}
        pairs = annotate(
            self.run, shared.label("others-annotate"), self.campaign.annotate, **who, prompts=shared.prompts
        )
        among = self.variant("others", preferences=pairs)
        return self.evaluation("dpo-others", entrant=read_entrant("dpo-given"), among=among)

    def folder(self, artifact: Artifact) -> Path:
        return self.run.store.fetch(artifact.ref)

    def rows(self, artifact: Artifact, name: str) -> list[Row]:
        """All rows of a stage's files of that name."""
        files = sorted(self.folder(artifact).glob(f"{name}*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def curve(self, artifact: Artifact) -> list[dict[str, float]]:
        """The training curve, a row a step."""
        return [json.loads(line) for line in (self.folder(artifact) / "metrics.jsonl").read_text().splitlines()]

    def record(self, artifact: Artifact) -> Mapping[str, Any]:
        """Times and memory of a stage."""
        found = self.run.store.manifest(artifact.ref)
        assert found is not None
        return found.record

    def by_prompt(self) -> list[list[Row]]:
        """The pool's responses, prompt by prompt, with their gold scores."""
        rows = self.rows(self.pool, "scored-")
        add_gold(rows, self.campaign.judge)
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(row["prompt_id"], []).append(row)
        return list(found.values())

    def held_out(self, name: str, column: str = "gold") -> np.ndarray:
        """A competitor's held-out responses, one value a prompt: [P]."""
        return np.array([row[column] for row in self.rows(self.evaluations[name], "responses")], dtype=float)

    def better(self, a: str, b: str, column: str = "gold") -> Effect:
        """How much better a's held-out responses are than b's, paired over prompts."""
        one, two = self.held_out(a, column), self.held_out(b, column)
        return mean_effect(one - two, f"{column} {a} {one.mean():.3f}, {b} {two.mean():.3f}")


def resampled(count: int, seed: int = 0) -> np.ndarray:
    """Indices of RESAMPLES bootstrap samples of `count` units: [RESAMPLES, count], the same for every measure of them."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, count, (RESAMPLES, count), dtype=np.int32)


def mean_effect(values: Sequence[float] | np.ndarray, note: str = "") -> Effect:
    """The mean of independent values with its bootstrap interval."""
    data = np.asarray(values, dtype=float)
    return Effect(float(data.mean()), data[resampled(len(data))].mean(axis=1), len(data), note)


def difference_effect(a: Sequence[float], b: Sequence[float], note: str = "") -> Effect:
    """Mean of a less mean of b for two independent samples."""
    one, two = mean_effect(a), mean_effect(b)
    apart = np.random.Generator(np.random.PCG64(1)).permutation(two.draws)  # samples of one size have the same draws
    return Effect(one.value - two.value, one.draws - apart, len(a) + len(b), note)


def rank_effect(a: np.ndarray, b: np.ndarray, note: str = "") -> Effect:
    """Rank correlation of two measures of M things over prompts: a [M, P], b [M, Q]; prompts are drawn, things are not."""
    sides = [_ranks(side[:, resampled(side.shape[1], seed)].mean(axis=2).T) for seed, side in enumerate((a, b))]
    one, two = (side - side.mean(axis=1, keepdims=True) for side in sides)
    scale = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    draws = (one * two).sum(axis=1) / np.where(scale > 0, scale, np.inf)
    return Effect(spearman(a.mean(axis=1).tolist(), b.mean(axis=1).tolist()), draws, len(a), note)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each of M values in its row, equals at the mean of their ranks: [N, M]."""
    mine, others = values[:, :, None], values[:, None, :]
    return (mine > others).sum(axis=2) + 0.5 * (mine == others).sum(axis=2)


def pooled(effects: Sequence[Effect]) -> Effect:
    """The mean over seeds: seeds are drawn first, then what each one's interval is made of. Of one seed, itself."""
    if len(effects) == 1:
        return effects[0]
    held = np.stack([effect.draws for effect in effects])
    taken = np.random.Generator(np.random.PCG64(2)).integers(0, len(held), held.shape)
    each = ", ".join(f"{effect.value:+.3f}" for effect in effects)
    note = f"seeds {each}; the first: {effects[0].note}" if effects[0].note else f"seeds {each}"
    value, count = sum(e.value for e in effects) / len(effects), sum(e.count for e in effects)
    return Effect(value, np.take_along_axis(held, taken, 0).mean(axis=0), count, note)
