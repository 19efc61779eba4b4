"""What the claims share: one laid-out bake-off whose stages are made once, and how a difference is judged.

A claim is a file of this folder with TEXT (what a source says), SOURCE, MATTERS (the smallest effect worth the name, in the
unit of the measure), UNIT, and two functions: `stages(lab)`, what it needs, and `measure(lab)`, the effect, positive where the
source is right. Nothing is tuned until it agrees: settings are those of configs/bake-off.yaml, written before the first look.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from configs import Campaign, Entrant, load, read_entrant, ready
from engine.statistics import estimate
from flows.bakeoff import START, Shared, trained
from storage import Store
from tasks import Artifact, Run

RESAMPLES = 10_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Effect:
    """An effect with its 95 % interval; positive is what the source says. `note` holds the numbers behind it."""

    value: float
    low: float
    high: float
    count: int
    note: str = ""

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

    def policy(self, name: str, entrant: Entrant | None = None, start: str = START, **settings: Any) -> Artifact:
        """A competitor's model: of configs/methods, or any entrant; `start` names the policy that it begins from.

        settings: of the family's recipe, where the claim is about one of them.
        """
        if name not in self.policies:
            made = ready(name, entrant or read_entrant(name), self.bake_off, self.campaign, **settings)
            self.policies[name] = trained(self.run, self.shared, made, start=self.policy(start))
        return self.policies[name]

    def evaluation(self, name: str, **how: Any) -> Artifact:
        """Its held-out responses; the prompts are the same for all."""
        if name not in self.evaluations:
            self.evaluations[name] = self.shared.judge(name, self.policy(name, **how))
        return self.evaluations[name]

    @cached_property
    def pool(self) -> Artifact:
        """The scored samples of the start that all offline methods share."""
        round_ = ready("rejection", read_entrant("rejection"), self.bake_off, self.campaign).rounds[0]
        return self.shared.pool(round_, "pool", self.shared.start)

    def folder(self, artifact: Artifact) -> Path:
        return self.run.store.fetch(artifact.ref)

    def rows(self, artifact: Artifact, name: str) -> list[Row]:
        """All rows of a stage's files of that name."""
        files = sorted(self.folder(artifact).glob(f"{name}*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def json(self, artifact: Artifact, name: str) -> Any:
        return json.loads((self.folder(artifact) / name).read_text())

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
        from engine.evaluate import add_gold

        rows = self.rows(self.pool, "scored-")
        add_gold(rows, self.campaign.judge)
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(row["prompt_id"], []).append(row)
        return list(found.values())

    def better(self, a: str, b: str, column: str = "gold") -> Effect:
        """How much better a's held-out responses are than b's, paired over prompts."""
        one, two = (self.rows(self.evaluations[name], "responses") for name in (a, b))
        values = [[row[column] for row in rows] for rows in (one, two)]
        note = f"{column} {a} {np.mean(values[0]):.3f}, {b} {np.mean(values[1]):.3f}"
        return mean_effect([x - y for x, y in zip(*values, strict=True)], note)


def mean_effect(values: Sequence[float], note: str = "") -> Effect:
    """The mean of independent values with its bootstrap interval."""
    found = estimate(values, resamples=RESAMPLES, seed=0)
    return Effect(found.mean, found.low, found.high, len(values), note)


def difference_effect(a: Sequence[float], b: Sequence[float], note: str = "") -> Effect:
    """Mean of a less mean of b for two independent samples."""
    rng = np.random.Generator(np.random.PCG64(0))
    draw = lambda x: np.array([np.mean(x[rng.integers(0, len(x), len(x))]) for _ in range(RESAMPLES // 5)])
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    low, high = np.quantile(draw(first) - draw(second), [0.025, 0.975])
    return Effect(float(first.mean() - second.mean()), float(low), float(high), len(a) + len(b), note)


Stages = Callable[[Lab], Sequence[Artifact]]
