"""What a stage will take: steps, tokens, FLOPs, memory and bytes by arithmetic from what it reads (cli/reads.py).

Time and money come from what was measured (cli/calibration.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from cli.costs import (
    Architecture,
    Lengths,
    Sizes,
    activation_bytes,
    adapters_of,
    cache_bytes,
    copy_bytes,
    rolling,
    sizes_of,
    training_bytes,
)
from cli.reads import Reads, architecture_of, expected, inputs_of
from configs import describe
from configs.certify import Certify
from configs.continuing import Continue, Pack
from configs.recipes import Online, Pretrain, Reward, Train
from configs.runtime import SERVED, Runtime
from tasks import Artifact


@dataclass(frozen=True)
class Forecast:
    """parameters: of the model at work, `trained` of them learn; tokens: with a loss, sampled, or packed; amount: what the time
    of a stage grows with, FLOPs or else rows; opening: of the amount, what is done before the first word on progress, where
    that is another kind of work; memory: bytes a device, of the process where it was measured; stored: bytes kept."""

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
    opening: float = 0.0

    @property
    def amount(self) -> float:
        """What its time grows with."""
        return self.flops or float(max(1, self.rows))


def forecast(artifact: Artifact, runtime: Runtime, reads: Reads | None = None) -> Forecast:
    """The stage's forecast, without time. reads: what it works on, where that is known better than `expected` guesses."""
    reads, architecture = reads or expected(artifact), architecture_of(artifact)
    recipe, work = artifact.stage.recipe, artifact.stage.work
    if architecture is None or (work not in _MODELS and artifact.stage.kind != "model"):
        return _packed(reads, architecture) if isinstance(recipe, Pack) else Forecast(0, 0, reads.rows, 0, 0, 0.0, 0, 0)
    if work not in _MODELS:
        size = sizes_of(architecture).parameters
        kept = size * (2 if getattr(recipe, "dtype", "float32") == "bfloat16" else 4)
        memory = TRANSPLANT * size if work == "transplant" else 0
        return Forecast(size, 0, reads.rows, 0, 0, 0.0, memory, kept)
    lora, dtype = getattr(recipe, "lora", None), getattr(recipe, "dtype", "float32")
    plain = sizes_of(architecture)
    trained = sizes_of(architecture, lora=lora, reward=isinstance(recipe, Reward))
    learn = trained.parameters
    if lora is not None:
        learn = adapters_of(architecture, lora) + (trained.head if isinstance(recipe, Reward) else 0)
    held = training_bytes(trained.parameters, learn, dtype, launcher=runtime.launcher,
                          zero=runtime.zero or int(dtype == "bfloat16"), processes=runtime.processes).total  # fmt: skip
    kept = (2 if dtype == "bfloat16" else 4) * sizes_of(architecture, reward=isinstance(recipe, Reward)).parameters
    one = _One(plain, trained, reads, runtime, artifact)
    if isinstance(recipe, Pretrain | Train | Reward):
        return _offline(one, recipe, Forecast(trained.parameters, learn, reads.rows, 0, 0, 0.0, held, kept), dtype)
    if isinstance(recipe, Continue):
        return _continuing(one, recipe, Forecast(trained.parameters, learn, reads.rows, 0, 0, 0.0, held, kept))
    if isinstance(recipe, Online):
        return _online(one, recipe, Forecast(trained.parameters, learn, 0, 0, 0, 0.0, held, kept), dtype)
    return _reading(one, recipe, work)


_READING = ("sample", "probe", "annotate", "evaluate", "score", "certify", "compare", "matrix", "measure")
_MODELS = frozenset(("pretrain", "train", "reward", "continuing", "online", *_READING))
SMOKE = 6  # questions that every evaluation asks too
TRANSPLANT = 24  # bytes a weight: four models in fp32, and the differences of one in fp64
ID_BYTES = (2, 1 << 16, 4)  # of a token id in a corpus: 2 where the vocabulary has at most so many, else 4


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

    def scoring(self, lengths: Lengths) -> float:
        """FLOPs of one response under one reward model."""
        return replace(self.plain, head=self.plain.hidden).forward(lengths, 1)

    def beside(self, count: int) -> tuple[int, Lengths]:
        """The sequences beside the rows: as they are known, else `count`, as long as the others."""
        return self.reads.beside or (count, self.reads.lengths)


def _offline(one: _One, recipe: Pretrain | Train | Reward, start: Forecast, dtype: str) -> Forecast:
    """Rows in a fixed order: three forward passes' worth a sequence, one more where a reference reads it first."""
    reads = one.reads
    steps, seen = steps_of(recipe, reads.rows)
    sequences = seen * reads.sequences
    outputs = 1.0 if isinstance(recipe, Reward) else reads.lengths.response
    flops = one.trained.learning(reads.lengths, outputs) * sequences
    if isinstance(recipe, Reward):  # its held-out pairs are scored at the end
        count, held_out = one.beside(0)
        flops += count * one.scoring(held_out)
    if _needs_reference(recipe):
        flops += one.plain.forward(reads.lengths, reads.lengths.response) * reads.rows * reads.sequences
    rows = min(one.runtime.train_rows or recipe.batch_size * reads.sequences, max(1, sequences))
    memory = start.memory + activation_bytes(one.trained, rows / one.runtime.processes, reads.lengths, outputs, dtype)
    tokens = round(sequences * reads.lengths.response)
    return replace(start, rows=seen, steps=steps, tokens=tokens, flops=flops, memory=memory)


def _continuing(one: _One, recipe: Continue, start: Forecast) -> Forecast:
    """As pretraining on as many sequences; at some steps of the curve held-out windows of every corpus are read too."""
    lengths, steps = one.reads.lengths, one.reads.rows // recipe.batch_size
    flops = one.trained.learning(lengths, lengths.response) * one.reads.rows
    if recipe.measure_every and steps:
        looks = len({1, steps, *range(recipe.measure_every, steps + 1, recipe.measure_every)})
        count, windows = one.beside(0)
        flops += looks * count * one.plain.forward(windows, windows.response)
    rows = min(one.runtime.train_rows or recipe.batch_size, recipe.batch_size)
    memory = start.memory + activation_bytes(
        one.trained, rows / one.runtime.processes, lengths, lengths.response, recipe.dtype
    )
    stored = start.stored + (8 * one.trained.parameters if recipe.publish_optimizer else 0)  # both moments in fp32
    tokens = round(one.reads.rows * lengths.response)
    return replace(start, steps=steps, tokens=tokens, flops=flops, memory=memory, stored=stored)


def _packed(reads: Reads, architecture: Architecture | None) -> Forecast:
    """A corpus: its token ids, each in as few bytes as hold the vocabulary."""
    few, most, many = ID_BYTES
    tokens = round(reads.rows * reads.lengths.response)
    width = many if architecture is not None and int(architecture["vocab_size"]) > most else few
    return Forecast(0, 0, reads.rows, 0, tokens, 0.0, 0, tokens * width)


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
    """A batch of rollouts is sampled and read by policy, reference, critic and reward models; then policy and critic learn.

    Beside the iterations' rollouts there are those of the critic's warm-up, at most as many as the recipe says.
    """
    lengths, has_critic = one.reads.lengths, "value" in describe(recipe.method).forwards
    critic = replace(one.trained, head=one.plain.hidden) if has_critic else None
    heads = [one.trained] if critic is None else [one.trained, critic]
    read = lambda found: rolling(one.trained, one.plain, critic, one.scorers(), found)
    rollouts = recipe.iterations * recipe.batch_size
    learned = sum(sizes.learning(lengths, lengths.response) for sizes in heads) * rollouts * recipe.epochs
    beside, warm = one.beside(recipe.warmup_batches * recipe.batch_size) if has_critic else (0, lengths)
    fitted = beside // recipe.batch_size * recipe.warmup_steps * recipe.minibatch_size
    warmed = beside * read(warm) + fitted * heads[-1].learning(warm, warm.response)
    return replace(
        start,
        rows=rollouts + beside,
        steps=rollouts * recipe.epochs // recipe.minibatch_size,
        tokens=round(rollouts * lengths.response),
        flops=rollouts * read(lengths) + learned + warmed,
        opening=warmed * recipe.batch_size / beside if beside else 0.0,
        memory=_held_online(one, recipe, start.memory * len(heads), len(heads), dtype),
    )


def _held_online(one: _One, recipe: Online, memory: int, learners: int, dtype: str) -> int:
    """Bytes a device of all models, and of what sampling or learning needs beside them, whichever is more."""
    lengths, runtime = one.reads.lengths, one.runtime
    frozen = (one.scorers() + (recipe.lora is None)) * 4 * one.plain.parameters
    if runtime.launcher != "local" and runtime.zero == 3:  # each process reads and samples with whole copies
        memory += learners * (2 if dtype == "bfloat16" else 4) * one.trained.parameters
    learning = activation_bytes(
        one.trained, runtime.train_rows or recipe.minibatch_size, lengths, lengths.response, dtype
    )
    sampling = copy_bytes(one.plain, "float32" if runtime.launcher == "local" else dtype)
    sampling += cache_bytes(one.plain, min(recipe.batch_size, runtime.sample_rows), lengths, "float32")
    if runtime.offload:  # frozen models are on the device while they read
        return memory + max(learning, sampling, frozen)
    return memory + frozen + max(learning, sampling)


LAYOUTS = 7  # ways in which a certificate scores the same responses: alone, together, reversed, ..


def _certified(one: _One, held: int) -> int:
    """Responses that a certificate scores: held-out ones also by the other model, training ones, the frozen probe set also by
    the model before, and few in every layout, once with a longer one."""
    recipe: Certify = one.artifact.stage.recipe
    others, before = (len(inputs_of(one.artifact, role)) for role in ("other", "before"))
    probe, few = min(held, recipe.probe // 2 * 2), min(held, recipe.invariance_rows)
    return held * (1 + others) + one.beside(0)[0] + probe * (1 + before) + LAYOUTS * few + 1


def _reading(one: _One, recipe: Any, work: str) -> Forecast:
    """Stages that sample, score, or both."""
    lengths, runtime = one.reads.lengths, one.runtime
    rows = one.reads.rows * one.reads.sequences
    beside, asked = one.beside(SMOKE) if work == "evaluate" else (0, lengths)  # questions that are sampled and scored
    sampled = rows if work in ("sample", "annotate", "probe", "evaluate") else 0
    scorers, judges, models = one.scorers(), one.judges(), len(inputs_of(one.artifact, "models"))
    scored = {
        "probe": rows * scorers,
        "score": rows * scorers,
        "evaluate": rows * (scorers + judges) * (1 + len(inputs_of(one.artifact, "earlier"))),
        "certify": _certified(one, rows) if work == "certify" else 0,
        "compare": rows * (scorers + judges),
        "matrix": rows * (scorers + judges),
    }.get(work, 0)
    read = sampled + {"evaluate": 2 * rows, "measure": models * rows}.get(
        work, 0
    )  # by policy and reference; by all bases
    flops = one.plain.forward(lengths, lengths.response) * read + one.scoring(one.reads.scored or lengths) * scored
    flops += beside * (one.plain.forward(asked, asked.response) + scorers * one.scoring(asked))
    held = {"sample": 1, "annotate": 2, "probe": 1 + scorers, "evaluate": 2 + scorers, "certify": 1, "measure": 1}
    batch = min(rows, runtime.sample_rows if sampled else runtime.score_rows)
    memory = held.get(work, scorers + judges) * 4 * one.plain.parameters
    memory += cache_bytes(one.plain, batch, lengths, "float32")
    if sampled and (work not in SERVED or runtime.sampler == "builtin"):
        memory += copy_bytes(one.plain, "float32")
    tokens = round(sampled * lengths.response + beside * asked.response)
    return Forecast(one.plain.parameters, 0, rows, 0, tokens, flops, memory, 4 * tokens)
