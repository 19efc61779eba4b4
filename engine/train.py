"""Rows -> a model, by the loss of an offline method: SFT, a round's fine-tuning, preference optimisation."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import methods
from configs.recipes import Train
from engine import adapters
from engine.drawing import fingerprint
from engine.errors import StageError
from engine.examples import Item, Reader
from engine.ghost import ghosts
from engine.job import Job
from engine.models import freeze, load_policy, save_model
from engine.offline import Fit, epochs, fit
from engine.packing import shape_of
from engine.reference import Logps, reference_logps
from engine.spool import Spool
from engine.template import Chat, load_chat
from methods import sft
from storage.rows import read_rows


def run(job: Job) -> dict[str, Any]:
    """Train on the rows (and a share of replayed ones) and write the model folder.

    Raises:
        StageError: an online method, rows that the method cannot use, no rows left, or what `offline.fit` raises.
    """
    recipe: Train = job.recipe
    method = methods.load(recipe.method)
    if method.loop != "offline" or method.forwards[0] == "reward":
        raise StageError(f"method {recipe.method} does not train a policy on rows; use it in its own stage")
    config, start = method.Config(**recipe.config), job.folder("model")
    chat = load_chat(start)
    reader = Reader(chat, recipe.limits, method, config)
    items = Spool(
        read_items(reader, job.folders("rows")) if recipe.gatt is None else _ghosts(job, recipe, reader, start)
    )
    own = len(items)
    if own == 0:
        raise StageError(f"no row is left to train on: {dict(reader.counts)}; raise limits or look at the rows")
    replayed = _replay(job, recipe, chat, items)
    steps = epochs(
        own,
        recipe.batch_size,
        recipe.epochs,
        seed=recipe.seed,
        limit=recipe.max_steps,
        replay=(len(items) - own, replayed),
    )
    if hasattr(method, "order") and getattr(config, "by", "order") == "order":
        steps = _ordered(method, config, items[:own], steps, recipe.seed)
    model = adapters.add(load_policy(start, job.runtime, dropout=recipe.dropout), recipe.lora, recipe.seed)
    fixed = job.folder("reference") if "reference" in job.inputs else start
    plan = Fit(
        model=model,
        method=method,
        config=config,
        optimizer=recipe.optimizer,
        steps=len(steps),
        rows=lambda step: steps[step - 1],
        item=items.__getitem__,
        pad_id=chat.pad_id,
        dtype=recipe.dtype,
        seed=recipe.seed,
        dropout=recipe.dropout,
        reference=(lambda: _reference(job, fixed, chat, items)) if "reference_logp" in method.forwards else None,
        shape=shape_of(model),
        same_start=fingerprint(fixed) == fingerprint(start),
    )
    model, summary = fit(job, plan)
    if reader.schema == "Example":
        chat = replace(chat, asks=_condition(job, method, config))
    save_model(adapters.merged(model), chat, job.out, "policy", recipe.dtype)
    return {**summary, "replayed": replayed, "read": dict(sorted(reader.counts.items()))}


def read_items(reader: Reader, folders: list[Path]) -> Iterator[Item]:
    """The items of all row artifacts, oldest first."""
    return (item for folder in folders for item in reader.read(read_rows(folder / "rows.parquet", reader.schema)))


def _ghosts(job: Job, recipe: Train, reader: Reader, start: Path) -> Iterator[Item]:
    """The items of all rows, dialogues among them with an instruction that is said once."""
    if reader.schema != "Example":
        raise StageError(
            f"train.gatt changes examples; method {recipe.method} learns from {reader.schema.lower()} rows"
        )
    assert recipe.gatt is not None
    rows = [row for folder in job.folders("rows") for row in read_rows(folder / "rows.parquet", reader.schema)]
    model, limits, batch = load_policy(start, job.runtime), recipe.limits, job.runtime.sample_rows
    return reader.read(ghosts(rows, recipe.gatt, reader.chat, model, limits, recipe.seed, batch, reader.counts))


def _condition(job: Job, method: Any, config: Any) -> str:
    """What to ask of the model that is trained: what its rows were conditioned on, or what the method reads into them."""
    files = [file for folder in job.folders("rows") if (file := folder / "condition.json").exists()]
    if files:
        return str(json.loads(files[-1].read_text())["text"])
    return str(method.target(config)) if hasattr(method, "condition") else ""


def _replay(job: Job, recipe: Train, chat: Chat, items: Spool) -> int:
    """Append the pool of rows to replay; returns how many of them an epoch sees, so that they are the recipe's share."""
    folders = job.folders("replay")
    if not folders or recipe.replay == 0:
        return 0
    if recipe.replay >= 1:
        raise StageError("train.replay is 1: nothing would be left of the rows; want a share below 1")
    reader = Reader(chat, recipe.limits, sft, sft.Config())
    own = len(items)
    items.extend(read_items(reader, folders))
    if len(items) == own:
        raise StageError(f"no row to replay: {dict(reader.counts)}")
    return round(own * recipe.replay / (1 - recipe.replay))


def _ordered(method: Any, config: Any, items: Sequence[Item], steps: list[list[int]], seed: int) -> list[list[int]]:
    """The same steps with rows as the method draws them."""

    rows = [{"grade": item.grade, "scores": item.scores} for item in items]
    drawn = iter(method.order(rows, sum(map(len, steps)), config, random.Random(f"{seed}:order")))
    return [[next(drawn) for _ in step] for step in steps]


def _reference(job: Job, folder: Path, chat: Chat, items: Sequence[Item]) -> Logps:
    model = freeze(load_policy(folder, job.runtime))
    if load_chat(folder).fingerprint != chat.fingerprint:
        raise StageError("the reference reads text in another way than the policy: its tokenizer or template differs")
    rows = job.runtime.train_rows or job.runtime.score_rows
    return reference_logps(model, items, pad_id=chat.pad_id, rows=rows, device=job.runtime.device)
