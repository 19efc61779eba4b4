"""All preferences so far -> a scalar reward model, and how well it predicts pairs that it has not seen."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import methods
from configs.recipes import Reward
from engine import adapters
from engine.batches import micro_batches
from engine.certificate import certificate
from engine.errors import StageError
from engine.examples import UNKNOWN, Item, Reader
from engine.formats import is_held_out
from engine.forwards import attributes
from engine.implicit import Implicit
from engine.job import Job
from engine.models import freeze, load_policy, load_reward, reward_from_policy, save_model
from engine.offline import Fit, epochs, fit
from engine.packing import arrange, shape_of
from engine.reference import reference_logps
from engine.spool import Spool
from engine.template import CARD, load_chat
from storage.rows import read_rows

Row = dict[str, Any]
STREAM = "reward:"  # its split is independent of ingest's, which has taken its part of the prompts already


def run(job: Job) -> dict[str, Any]:
    """Train on the mix of own and other pairs, judge the held-out pairs, and write the model folder and held_out.json.

    Raises:
        StageError: a method that trains no reward, no pairs of this kind, or what `offline.fit` raises.
    """
    recipe: Reward = job.recipe
    method = methods.load(recipe.method)
    implicit = method.loop == "offline" and set(method.forwards) == {"policy_logp", "reference_logp"}
    if "reward" not in method.forwards and not implicit:
        raise StageError(
            f"method {recipe.method} does not train a reward model; use reward or one like it, or dpo for an implicit one"
        )
    config, start = method.Config(**recipe.config), job.folder("model")
    chat = replace(load_chat(start), asks="")  # a reward model judges answers to what the user said
    reader = Reader(chat, recipe.limits, method, config)
    rows = (row for folder in job.folders("preferences") for row in read_rows(folder / "rows.parquet", reader.schema))
    train, held = split(reader, rows, recipe.held_out)
    held.extend(given_held_out(job, reader))
    mixed, counts = mix(train, recipe.kind, recipe.own_share, recipe.seed)
    steps = epochs(len(mixed), recipe.batch_size, recipe.epochs, seed=recipe.seed, keys=[item.key for item in mixed])
    model = load_policy(start, job.runtime) if implicit else _scorer(job, start, config)
    model = adapters.add(model, recipe.lora, recipe.seed)
    plan = Fit(
        model=model,
        method=method,
        config=config,
        optimizer=recipe.optimizer,
        steps=len(steps),
        rows=lambda step: steps[step - 1],
        item=mixed.__getitem__,
        pad_id=chat.pad_id,
        dtype=recipe.dtype,
        seed=recipe.seed,
        reference=(
            lambda: reference_logps(
                freeze(load_policy(start, job.runtime)),
                mixed,
                pad_id=chat.pad_id,
                rows=job.runtime.score_rows,
                device=job.runtime.device,
            )
        )
        if implicit
        else None,
        shape=shape_of(model),
        same_start=implicit,
    )
    model, summary = fit(job, plan)
    model = adapters.merged(model)
    if implicit:
        beta = getattr(config, "beta", None) or config.gamma
        model = Implicit(model, load_policy(start, job.runtime), beta).eval()
    own = {"reads": "own"} if recipe.reads == "own" else {}
    several = {"attributes": list(config.attributes)} if hasattr(config, "attributes") else {}
    save_model(model, chat, job.out, "reward", recipe.dtype, **own, **several)
    outputs = outputs_of(job, model, held, chat.pad_id)
    means = [[sum(one) / len(one) for one in responses] for responses in outputs]
    report = certificate(held, means, recipe.kind, recipe.seed) if held else {"pairs": 0}
    if names := getattr(config, "attributes", ()):
        report["attributes"] = levels(held, outputs, mixed, names)
    (job.out / "held_out.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    short = {name: report[name] for name in ("pairs", "accuracy", "own", "attributes") if name in report}
    return {**summary, "mix": counts, "read": dict(sorted(reader.counts.items())), "held_out": short}


def _scorer(job: Job, start: Path, config: Any) -> Any:
    """The model to train: a reward model as it is, or a policy with a head put on."""
    recipe: Reward = job.recipe
    if json.loads((start / CARD).read_text())["kind"] == "reward":
        return load_reward(start, job.runtime)
    outputs = len(getattr(config, "attributes", "1"))
    if recipe.head == "token" and outputs > 1:
        raise StageError(f"reward.head token gives one number, {recipe.method} wants {outputs}: use head new")
    return reward_from_policy(start, job.runtime, recipe.seed, outputs=outputs, token=recipe.head_token)


def levels(
    items: Sequence[Item], predicted: Sequence[Sequence[Sequence[float]]], train: Sequence[Item], names: Sequence[str]
) -> dict[str, Any]:
    """Of an attribute model: absolute error on held-out rows, and that of always saying the training rows' mean.

    Args:
        predicted: of each item the outputs [A] for each of its responses.
    """
    found: dict[str, Any] = {}
    for place, name in enumerate(names):
        known = [label[place] for item in train for label in item.labels if label[place] != UNKNOWN]
        pairs = [
            (outputs[place], label[place])
            for item, responses in zip(items, predicted)
            for label, outputs in zip(item.labels, responses)
            if label[place] != UNKNOWN
        ]
        if known and pairs:
            mean = sum(known) / len(known)
            found[name] = {"error": sum(abs(p - y) for p, y in pairs) / len(pairs),
                           "error_of_mean": sum(abs(mean - y) for _, y in pairs) / len(pairs), "count": len(pairs)}  # fmt: skip
    return found


def split(reader: Reader, rows: Iterable[Row], share: float) -> tuple[Spool, Spool]:
    """Training and held-out items; a prompt is on one side whatever the round or source of its pair."""
    sides = (Spool(), Spool())
    for row in rows:
        item = reader.item(row)
        if item is not None:
            sides[is_held_out(row, share, STREAM)].append(item)
    return sides


def given_held_out(job: Job, reader: Reader) -> Iterator[Item]:
    """The pairs that ingest kept from everybody, where the preferences were given and not made by the policies."""
    files = [folder / "held_out.parquet" for folder in job.folders("preferences")]
    return (item for file in files if file.exists() for item in reader.read(read_rows(file, reader.schema)))


def mix(items: Spool, kind: str, own_share: float, seed: int) -> tuple[Spool, dict[str, int]]:
    """All pairs of this kind, and as many of the others, drawn uniformly, as make `own_share` (METHODS 2.2).

    Rows without a kind (rankings) are own. Raises:
        StageError: no pair of this kind.
    """
    own, others = [], []
    for i, item in enumerate(items):
        (own if item.tags.get("kind", kind) == kind else others).append(i)
    if not own or own_share == 0:
        found = dict(Counter(str(item.tags.get("kind")) for item in items))
        raise StageError(f"no {kind} pair to train on (own_share {own_share:g}, pairs by kind: {found})")
    wanted = round(len(own) * (1 - own_share) / own_share)
    drawn = random.Random(f"{seed}:mix").sample(others, min(wanted, len(others)))
    return items.at(sorted([*own, *drawn])), {
        "own": len(own),
        "other": len(drawn),
        "other_wanted": wanted,
        "other_there": len(others),
    }


def judge(job: Job, model: Any, items: Sequence[Item], pad_id: int) -> list[list[float]]:
    """The model's score of every item's responses; of several outputs the first, which is what steers."""
    return [[one[0] for one in responses] for responses in outputs_of(job, model, items, pad_id)]


def outputs_of(job: Job, model: Any, items: Sequence[Item], pad_id: int) -> list[list[list[float]]]:
    """The model's outputs [A] for every item's responses."""
    found: list[list[list[float]]] = [[] for _ in items]
    rows, shape = job.runtime.score_rows, shape_of(model)
    with torch.inference_mode():
        for part in micro_batches([item.lengths for item in items], rows):
            taken = [items[i] for i in part]
            padded = arrange([pair for item in taken for pair in item.pairs()], pad_id=pad_id, shape=shape)
            scores = iter(attributes(model, padded.to(job.runtime.device)).tolist())
            for i, item in zip(part, taken):
                found[i] = [next(scores) for _ in item.responses]
    return found
