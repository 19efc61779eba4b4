"""What a stage will take: rows, steps, tokens, FLOPs, memory and bytes by arithmetic, time and money from what was measured.

The arithmetic wants to know how many rows a stage reads and how long they are (`Reads`). Before they exist it takes what the
recipe and the stages already made say, and at most the limits; so a plan sharpens as the campaign goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cli.costs import (
    Architecture,
    Lengths,
    Sizes,
    activation_bytes,
    adapters_of,
    cache_bytes,
    human,
    sizes_of,
    training_bytes,
)
from configs import describe
from configs.load import locate
from configs.recipes import Adopt, Annotate, Evaluate, Ingest, Limits, Online, Pretrain, Probe, Reward, Sample, Train
from configs.runtime import Runtime
from tasks import Artifact

__all__ = ["Forecast", "Reads", "architecture_of", "expected", "forecast", "human", "inputs_of", "reads_of"]


@dataclass(frozen=True)
class Reads:
    """What a stage works on. rows: in the data, once each (prompts where it samples); sequences: to a row."""

    rows: int
    lengths: Lengths
    sequences: int = 1


@dataclass(frozen=True)
class Forecast:
    """parameters: of the model at work, `trained` of them learn; tokens: with a loss, or sampled; amount: what the time of a
    stage grows with, FLOPs or else rows; memory: bytes a device, of the process where it was measured; stored: bytes kept."""

    parameters: int
    trained: int
    rows: int
    steps: int
    tokens: int
    flops: float
    memory: int
    stored: int
    cpu_seconds: float | None = None
    seconds: float | None = None
    money: float | None = None

    @property
    def amount(self) -> float:
        """What its time grows with."""
        return self.flops or float(max(1, self.rows))


def architecture_of(artifact: Artifact) -> Architecture | None:
    """The architecture that a stage works on: that of the base its models come from."""
    recipe = artifact.stage.recipe
    if isinstance(recipe, Pretrain):
        return {"model_type": "llama", "vocab_size": recipe.tokenizer.vocab_size, **recipe.architecture}
    if isinstance(recipe, Adopt):
        if recipe.architecture or recipe.path is None:
            return recipe.architecture or None
        config: dict[str, Any] = json.loads((locate(recipe.path) / "config.json").read_text())
        return config
    for upstream in artifact.upstream:
        if (found := architecture_of(upstream)) is not None:
            return found
    return None


def forecast(artifact: Artifact, runtime: Runtime, reads: Reads | None = None) -> Forecast:
    """The stage's forecast, without time. reads: what it works on, where that is known better than `expected` guesses."""
    reads, architecture = reads or expected(artifact), architecture_of(artifact)
    recipe, work = artifact.stage.recipe, artifact.stage.work
    if architecture is None:
        return Forecast(0, 0, reads.rows, 0, 0, 0.0, 0, 0)
    if work not in _MODELS:
        size = sizes_of(architecture).parameters
        kept = size * (2 if getattr(recipe, "dtype", "float32") == "bfloat16" else 4)
        return Forecast(size, 0, reads.rows, 0, 0, 0.0, 0, kept if artifact.stage.kind == "model" else 0)
    lora, dtype = getattr(recipe, "lora", None), getattr(recipe, "dtype", "float32")
    plain = sizes_of(architecture)
    trained = sizes_of(architecture, lora=lora, reward=isinstance(recipe, Reward))
    learn = trained.parameters
    if lora is not None:
        learn = adapters_of(architecture, lora) + (trained.head if isinstance(recipe, Reward) else 0)
    held = training_bytes(trained.parameters, learn, dtype, launcher=runtime.launcher, zero=runtime.zero,
                          processes=runtime.processes).total  # fmt: skip
    kept = (2 if dtype == "bfloat16" else 4) * sizes_of(architecture, reward=isinstance(recipe, Reward)).parameters
    one = _One(plain, trained, reads, runtime, artifact)
    if isinstance(recipe, Pretrain | Train | Reward):
        return _offline(one, recipe, Forecast(trained.parameters, learn, reads.rows, 0, 0, 0.0, held, kept), dtype)
    if isinstance(recipe, Online):
        return _online(one, recipe, Forecast(trained.parameters, learn, 0, 0, 0, 0.0, held, kept), dtype)
    return _reading(one, recipe, work)


_READING = ("sample", "probe", "annotate", "evaluate", "score", "certify", "compare", "matrix")
_MODELS = frozenset(("pretrain", "train", "reward", "online", *_READING))
SMOKE = 6  # questions that every evaluation asks too


@dataclass(frozen=True)
class _One:
    """A stage with what its arithmetic needs. rewards: its scorers."""

    plain: Sizes
    trained: Sizes
    reads: Reads
    runtime: Runtime
    artifact: Artifact

    def scorers(self) -> int:
        return len(inputs_of(self.artifact, "rewards"))

    def judges(self) -> int:
        return len(inputs_of(self.artifact, "judges"))

    def scoring(self) -> float:
        """FLOPs of one response under one reward model."""
        return replace(self.plain, head=self.plain.hidden).forward(self.reads.lengths, 1)


def _offline(one: _One, recipe: Pretrain | Train | Reward, start: Forecast, dtype: str) -> Forecast:
    """Rows in a fixed order: three forward passes' worth a sequence, one more where a reference reads it first."""
    reads = one.reads
    steps, seen = steps_of(recipe, reads.rows)
    sequences = seen * reads.sequences
    outputs = 1.0 if isinstance(recipe, Reward) else reads.lengths.response
    flops = one.trained.learning(reads.lengths, outputs) * sequences
    if _needs_reference(recipe):
        flops += one.plain.forward(reads.lengths, reads.lengths.response) * reads.rows * reads.sequences
    rows = min(one.runtime.train_rows or recipe.batch_size * reads.sequences, max(1, sequences))
    memory = start.memory + activation_bytes(one.trained, rows / one.runtime.processes, reads.lengths, outputs, dtype)
    tokens = round(sequences * reads.lengths.response)
    return replace(start, rows=seen, steps=steps, tokens=tokens, flops=flops, memory=memory)


def steps_of(recipe: Pretrain | Train | Reward, rows: int) -> tuple[int, int]:
    """Optimizer steps, and rows that they see together: whole epochs with their last partial batch."""
    if isinstance(recipe, Pretrain):
        return recipe.steps, recipe.steps * recipe.batch_size
    if rows == 0:
        return 0, 0
    cuts = math.ceil(rows / recipe.batch_size)
    steps = seen = 0
    for epoch in range(math.ceil(recipe.epochs)):
        taken = math.ceil(round(min(1.0, recipe.epochs - epoch) * cuts, 9))
        steps, seen = steps + taken, seen + min(rows, taken * recipe.batch_size)
    limit = recipe.max_steps if isinstance(recipe, Train) else 0
    return (limit, min(seen, limit * recipe.batch_size)) if limit and limit < steps else (steps, seen)


def _needs_reference(recipe: Pretrain | Train | Reward) -> bool:
    return isinstance(recipe, Train | Reward) and "reference_logp" in describe(recipe.method).forwards


def _online(one: _One, recipe: Online, start: Forecast, dtype: str) -> Forecast:
    """A batch of rollouts is sampled and read by policy, reference, critic and reward models; then policy and critic learn."""
    lengths, has_critic = one.reads.lengths, "value" in describe(recipe.method).forwards
    policy = one.trained.forward(lengths, lengths.response)
    critic = replace(one.trained, head=one.plain.hidden).forward(lengths, lengths.response) if has_critic else 0.0
    warm = recipe.warmup_batches if has_critic else 0
    batches, rollouts = recipe.iterations + warm, (recipe.iterations + warm) * recipe.batch_size
    read = 3 * policy + critic + one.scorers() * one.scoring()
    heads = (one.trained, replace(one.trained, head=one.plain.hidden)) if has_critic else (one.trained,)
    each = [sizes.learning(lengths, lengths.response) for sizes in heads]
    learned = sum(each) * recipe.iterations * recipe.batch_size * recipe.epochs
    warmed = each[-1] * warm * recipe.warmup_steps * recipe.minibatch_size
    steps = recipe.iterations * recipe.epochs * (recipe.batch_size // recipe.minibatch_size)
    rows = one.runtime.train_rows or recipe.minibatch_size
    frozen = (one.scorers() + (recipe.lora is None)) * 4 * one.plain.parameters
    memory = start.memory * len(heads) + frozen
    if one.runtime.launcher != "local" and one.runtime.zero == 3:  # each process reads and samples with whole copies
        memory += len(heads) * (2 if dtype == "bfloat16" else 4) * one.trained.parameters
    memory += activation_bytes(one.trained, rows, lengths, lengths.response, dtype)
    tokens = round(recipe.iterations * recipe.batch_size * lengths.response)
    flops = rollouts * read + learned + warmed
    return replace(start, rows=rollouts, steps=steps, tokens=tokens, flops=flops, memory=memory) if batches else start


def _reading(one: _One, recipe: Any, work: str) -> Forecast:
    """Stages that sample, score, or both."""
    lengths, runtime = one.reads.lengths, one.runtime
    rows = one.reads.rows * one.reads.sequences
    sampled = {"sample": rows, "annotate": rows, "probe": rows, "evaluate": rows + SMOKE}.get(work, 0)
    scorers, judges = one.scorers(), one.judges()
    scored = {
        "probe": rows * scorers,
        "score": rows * scorers,
        "evaluate": rows * (scorers + judges) * (1 + len(inputs_of(one.artifact, "earlier"))) + SMOKE * scorers,
        "certify": rows,
        "compare": rows * (scorers + judges),
        "matrix": rows * (scorers + judges),
    }.get(work, 0)
    read = sampled + (2 * rows if work == "evaluate" else 0)  # policy and reference read what the policy said
    flops = one.plain.forward(lengths, lengths.response) * read + one.scoring() * scored
    models = {"sample": 1, "annotate": 2, "probe": 1 + scorers, "evaluate": 2 + scorers, "certify": 1}
    batch = min(rows, runtime.sample_rows if sampled else runtime.score_rows)
    memory = models.get(work, scorers + judges) * 4 * one.plain.parameters
    memory += cache_bytes(one.plain, batch, lengths, "float32")
    tokens = round(sampled * lengths.response)
    return Forecast(one.plain.parameters, 0, rows, 0, tokens, flops, memory, 4 * tokens)


def expected(artifact: Artifact) -> Reads:
    """What a stage will read, from its recipe and from what was made before it; lengths are at most the limits."""
    recipe, work = artifact.stage.recipe, artifact.stage.work
    limits = getattr(recipe, "limits", None) or Limits()
    lengths = Lengths.fixed(limits.prompt_tokens, limits.response_tokens)
    if isinstance(recipe, Pretrain):
        return Reads(recipe.steps * recipe.batch_size, Lengths.fixed(1, recipe.sequence_length))
    if isinstance(recipe, Ingest):
        return Reads(sum(source.count or 0 for source in recipe.sources), lengths)
    if isinstance(recipe, Train):
        rows = sum(made_rows(a) for a in inputs_of(artifact, "rows"))
        extra = round(rows * recipe.replay / (1 - recipe.replay)) if inputs_of(artifact, "replay") else 0
        return Reads(rows + extra, lengths, 2 if "chosen" in describe(recipe.method).columns else 1)
    if isinstance(recipe, Reward):
        given = inputs_of(artifact, "preferences")
        own = sum(made_rows(a, recipe.kind) for a in given)
        other = min(
            sum(made_rows(a) for a in given) - own, round(own * (1 - recipe.own_share) / max(recipe.own_share, 1e-9))
        )
        return Reads(round((own + max(0, other)) * (1 - recipe.held_out)), lengths, 2)
    if isinstance(recipe, Online):
        return Reads(recipe.batch_size, lengths)
    if isinstance(recipe, Annotate):
        return Reads(_at_most(artifact, recipe.prompts), lengths, 2)
    if isinstance(recipe, Sample):
        return Reads(_at_most(artifact, recipe.prompts), lengths, recipe.k)
    if isinstance(recipe, Probe):
        return Reads(_at_most(artifact, recipe.prompts), lengths, recipe.k * len(recipe.temperatures))
    if isinstance(recipe, Evaluate):
        return Reads(recipe.prompts, lengths)
    if work == "score":
        return Reads(sum(made_rows(a) for a in inputs_of(artifact, "samples")), lengths)
    if work == "certify":  # at most all of its pairs
        return Reads(sum(made_rows(a) for a in inputs_of(artifact, "preferences")), lengths, 2)
    return Reads(sum(made_rows(a) for a in artifact.upstream if a.stage.kind == "rows"), lengths)


def inputs_of(artifact: Artifact, role: str) -> list[Artifact]:
    """The artifacts that a stage takes in a role."""
    refs = artifact.stage.inputs.get(role, ())
    wanted = list(refs) if isinstance(refs, tuple | list) else [refs]
    return [one for ref in wanted for one in artifact.upstream if one.ref == ref][: len(wanted)]


def _at_most(artifact: Artifact, prompts: int) -> int:
    there = [made_rows(a) for a in inputs_of(artifact, "prompts")]
    return min(prompts, *there) if any(there) else prompts


def made_rows(artifact: Artifact, kind: str | None = None) -> int:
    """The rows of an artifact: as it says once it is made, before that as its recipe would have it."""
    recipe, made = artifact.stage.recipe, artifact.made()
    if made is not None:
        names = ("rows", "responses", "pairs", "prompts") if kind is None else (kind, "rows")
        return int(next((made.summary[name] for name in names if name in made.summary), 0))
    if isinstance(recipe, Ingest):
        return round(sum(source.count or 0 for source in recipe.sources) * (1 - recipe.held_out))
    if isinstance(recipe, Annotate):
        return recipe.prompts // (1 if kind is None else len(recipe.kinds))
    if isinstance(recipe, Sample):
        return recipe.prompts * recipe.k
    if isinstance(recipe, Evaluate):
        return recipe.prompts
    if artifact.stage.work == "select":
        return max((a.stage.recipe.prompts for a in _sampled(artifact)), default=0)
    return sum(made_rows(a) for a in artifact.upstream if a.stage.work in ("sample", "select"))


def _sampled(artifact: Artifact) -> list[Any]:
    found = [artifact] if artifact.stage.work == "sample" else []
    return found + [one for upstream in artifact.upstream for one in _sampled(upstream)]


def reads_of(artifact: Artifact, summary: Mapping[str, Any]) -> Reads | None:
    """What a finished stage has read, by its own record; None where the record does not say."""
    if artifact.stage.work in ("train", "reward", "pretrain") and summary.get("sequences"):
        count, rows = summary["sequences"], summary["rows"]
        response = summary["tokens"] / count
        per_row = max(1, round(count / rows))
        given = expected(artifact)
        return Reads(
            given.rows,
            Lengths(summary["sequence_tokens"] / count - response, response, summary["squares"] / count),
            per_row,
        )
    if artifact.stage.work == "sample" and summary.get("prompt_tokens"):
        count = summary["responses"]
        lengths = Lengths(summary["prompt_tokens"] / count, summary["tokens"] / count, summary["squares"] / count)
        return Reads(summary["prompts"], lengths, count // summary["prompts"])
    return None
