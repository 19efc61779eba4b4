"""What a stage works on: how many rows, how long their sequences are; as its record says, or as its recipe lets one expect.

Before a stage has run, rows are what its recipe and the stages already made say, and lengths are the limits; so a plan
sharpens as the campaign goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cli.costs import Architecture, Lengths
from configs import describe
from configs.certify import Certify
from configs.continuing import Continue, Measure, Pack
from configs.load import locate
from configs.recipes import Adopt, Annotate, Evaluate, Ingest, Limits, Online, Pretrain, Probe, Reward, Sample, Train
from tasks import Artifact
from tasks.standing import Given

SHARD_ROWS = 4096  # most rows of a shard, however few shards are asked for


@dataclass(frozen=True)
class Reads:
    """What a stage works on. rows: in the data, once each (prompts where it samples); sequences: to a row.

    beside: sequences that are worked on beside the rows, and their lengths: held-out pairs of a reward model, training pairs of
    a certificate, an evaluation's extra questions, rollouts of a critic's warm-up, held-out windows of a curve; None = as many
    as the recipe says, as long as the others. scored: lengths of what reward models read, where that is not what was sampled
    (earlier versions' responses too)."""

    rows: int
    lengths: Lengths
    sequences: int = 1
    beside: tuple[int, Lengths] | None = None
    scored: Lengths | None = None


def architecture_of(artifact: Artifact) -> Architecture | None:
    """The architecture that a stage works on: that of the base its models come from."""
    if isinstance(artifact, Given):
        data = artifact.file("config.json")
        return None if data is None else dict(json.loads(data))
    found = architecture_in(artifact.stage.recipe)
    upstream = iter(artifact.upstream)
    while found is None and (one := next(upstream, None)) is not None:
        found = architecture_of(one)
    return found


def architecture_in(recipe: Any) -> Architecture | None:
    """The architecture that a base model's recipe names; None for other recipes."""
    if isinstance(recipe, Pretrain):
        return {"model_type": "llama", "vocab_size": recipe.tokenizer.vocab_size, **recipe.architecture}
    if not isinstance(recipe, Adopt):
        return None
    if recipe.architecture or recipe.path is None:
        return recipe.architecture or None
    config: dict[str, Any] = json.loads((locate(recipe.path) / "config.json").read_text())
    return config


def expected(artifact: Artifact, known: Lengths | None = None) -> Reads:
    """What a stage will read, from its recipe and from what was made before it.

    known: lengths of prompts and responses where something tells them; else they are at most the limits.
    """
    recipe, work = artifact.stage.recipe, artifact.stage.work
    limits = getattr(recipe, "limits", None) or Limits()
    lengths = known or Lengths.fixed(limits.prompt_tokens, limits.response_tokens)
    if isinstance(recipe, Pretrain):
        return Reads(recipe.steps * recipe.batch_size, Lengths.fixed(1, recipe.sequence_length))
    if isinstance(recipe, Pack | Continue | Measure):
        return _of_documents(artifact, recipe)
    if isinstance(recipe, Ingest):
        return Reads(sum(source.count or 0 for source in recipe.sources), lengths)
    if isinstance(recipe, Train):
        rows = sum(made_rows(a) for a in inputs_of(artifact, "rows"))
        extra = round(rows * recipe.replay / (1 - recipe.replay)) if inputs_of(artifact, "replay") else 0
        return Reads(rows + extra, lengths, 2 if "chosen" in describe(recipe.method).columns else 1)
    if isinstance(recipe, Reward):
        own, every = _pairs(artifact, recipe.kind)
        other = min(every - own, round(own * (1 - recipe.own_share) / max(recipe.own_share, 1e-9)))
        held_out = (2 * round(every * recipe.held_out), lengths)
        return Reads(round((own + max(0, other)) * (1 - recipe.held_out)), lengths, 2, held_out)
    if isinstance(recipe, Certify):
        own, every = _pairs(artifact, recipe.reward.kind)
        trained = min(recipe.train_pairs, round(own * (1 - recipe.reward.held_out)))
        limits = recipe.reward.limits
        lengths = known or Lengths.fixed(limits.prompt_tokens, limits.response_tokens)
        return Reads(round(every * recipe.reward.held_out), lengths, 2, (2 * trained, lengths))
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
    if work in ("compare", "matrix"):
        return Reads(sum(made_rows(a) for a in inputs_of(artifact, "versions")), lengths)
    return Reads(sum(made_rows(a) for a in artifact.upstream if a.ref.kind == "rows"), lengths)


def parts_of(artifact: Artifact) -> int:
    """Files of rows that a stage writes: samples are written in shards, and scored shard by shard."""
    recipe = artifact.stage.recipe
    if isinstance(recipe, Sample):
        return max(recipe.shards, -(-made_rows(artifact) // SHARD_ROWS))
    if artifact.stage.work == "score":
        return sum(parts_of(one) for one in inputs_of(artifact, "samples"))
    return 1


def inputs_of(artifact: Artifact, role: str) -> list[Artifact]:
    """The artifacts that a stage takes in a role."""
    refs = artifact.stage.inputs.get(role, ())
    wanted = list(refs) if isinstance(refs, tuple | list) else [refs]
    return [one for ref in wanted for one in artifact.upstream if one.ref == ref][: len(wanted)]


def _pairs(artifact: Artifact, kind: str) -> tuple[int, int]:
    """Pairs of preferences of a kind, and of all kinds."""
    given = inputs_of(artifact, "preferences")
    return sum(made_rows(a, kind) for a in given), sum(made_rows(a) for a in given)


def _at_most(artifact: Artifact, prompts: int) -> int:
    there = [made_rows(a) for a in inputs_of(artifact, "prompts")]
    return min(prompts, *there) if any(there) else prompts


def made_rows(artifact: Artifact, kind: str | None = None) -> int:
    """The rows of an artifact: as it says once it is made, before that as its recipe would have it."""
    if (made := artifact.made()) is not None:
        names = ("rows", "responses", "pairs", "documents", "prompts") if kind is None else (kind, "rows")
        return int(next((made.summary[name] for name in names if name in made.summary), 0))
    recipe = artifact.stage.recipe
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
    return sum(made_rows(a) for a in artifact.upstream if a.ref.name in ("sample", "select"))


def _sampled(artifact: Artifact) -> list[Any]:
    found = [artifact] if artifact.ref.name == "sample" else []
    return found + [one for upstream in artifact.upstream for one in _sampled(upstream)]


def reads_of(artifact: Artifact, summary: Mapping[str, Any], known: Lengths | None = None) -> Reads:
    """What a finished stage has read, by its own record; where that does not say, as `expected` with the `known` lengths."""
    guess, work = expected(artifact, known), artifact.stage.work
    if work in ("train", "reward", "pretrain", "continuing") and summary.get("sequences"):
        count, response = summary["sequences"], summary["tokens"] / summary["sequences"]
        lengths = Lengths(summary["sequence_tokens"] / count - response, response, summary["squares"] / count)
        sequences = max(1, round(count / summary["rows"]))
        held_out = guess.beside if work == "continuing" else None
        if "pairs" in (said := summary.get("held_out", {})):
            held_out = (sequences * said["pairs"], lengths)
        return replace(guess, lengths=lengths, sequences=sequences, beside=held_out)
    if work == "sample" and summary.get("prompt_tokens"):
        count = summary["responses"]
        lengths = Lengths(summary["prompt_tokens"] / count, summary["tokens"] / count, summary["squares"] / count)
        return Reads(summary["prompts"], lengths, count // summary["prompts"])
    if work == "pack":
        documents, held_out = summary["documents"], summary["held_out"]
        lengths = Lengths.fixed(0, summary["tokens"] / documents)
        return Reads(documents, lengths, beside=(held_out, lengths))
    if work == "certify":
        return replace(guess, rows=summary["pairs"])
    if work in ("probe", "evaluate"):
        return replace(guess, rows=summary["prompts"])
    if work == "annotate" and "dropped" in summary:
        return replace(guess, rows=guess.rows - summary["dropped"])
    if work == "online" and (warm := summary.get("warmup_batches")) is not None:
        return replace(guess, beside=(warm * artifact.stage.recipe.batch_size, guess.lengths))
    return guess


def _of_documents(artifact: Artifact, recipe: Pack | Continue | Measure) -> Reads:
    """What the stages of a refresh read: documents, sequences cut out of a corpus, windows of held-out text."""
    if isinstance(recipe, Pack):
        (documents,) = inputs_of(artifact, "documents")
        said, each = documents.summary() or {}, _tokens_each(artifact)
        lengths = Lengths.fixed(0, each)
        return Reads(made_rows(documents) if said else 0, lengths, beside=(int(said.get("held_out", 0)), lengths))
    if isinstance(recipe, Continue):
        (new,) = inputs_of(artifact, "new")
        corpora = [new, *inputs_of(artifact, "old")]
        return Reads(
            recipe.batch_size * steps_over(recipe, tokens_in(new)),
            Lengths.fixed(1, recipe.sequence_length),
            beside=_windows(corpora, recipe.sequence_length, recipe.measure_documents)
            if recipe.measure_every
            else None,
        )
    count, lengths = _windows(inputs_of(artifact, "corpora"), recipe.sequence_length, recipe.documents)
    return Reads(count, lengths)


def steps_over(recipe: Continue, tokens: float) -> int:
    """Optimizer steps of a continued pretraining on so many new tokens; 0 where neither they nor the steps are known."""
    return recipe.steps or -int(-round(recipe.epochs * tokens / (recipe.batch_size * recipe.sequence_length), 9) // 1)


def tokens_in(corpus: Artifact) -> float:
    """Tokens of a packed corpus; before it is packed, of the documents in the mean length of those of the base."""
    said = corpus.summary()
    if said is not None:
        return float(said["tokens"])
    guess = expected(corpus)
    return guess.rows * guess.lengths.response


def _tokens_each(corpus: Artifact) -> float:
    """Mean tokens of a document, by what the base was trained on; 0 where nothing tells."""
    for base in inputs_of(corpus, "tokenizer"):
        said = base.summary() or {}
        if "corpus_tokens" in said:
            return float(said["corpus_tokens"]) / float(said["documents"])
    return 0.0


def _windows(corpora: list[Artifact], length: int, most: int) -> tuple[int, Lengths]:
    """Windows of at most `length` tokens that held-out documents are cut into, and how long they are. most: documents of a
    corpus, 0 = all. Every document is taken to be as long as the mean of its corpus."""
    count, tokens, squares = 0, 0.0, 0.0
    for corpus in corpora:
        said, guess = corpus.summary(), None if isinstance(corpus, Given) else expected(corpus)
        each = said["tokens"] / said["documents"] if said else guess.lengths.response if guess else 0.0
        held_out = said["held_out"] if said else guess.beside[0] if guess and guess.beside else 0
        documents = min(held_out, most) if most else held_out
        whole, rest = divmod(each, length)
        count += documents * (int(whole) + (rest > 0))
        tokens += documents * each
        squares += documents * (whole * (length + 1) ** 2 + (rest > 0) * (rest + 1) ** 2)
    return count, Lengths(1, tokens / max(1, count), squares / max(1, count))
