"""The offline loop: rows in a fixed order -> optimizer steps. Behind SFT, reward models, preference methods and pretraining.

A step's data is a function of its number, its loss is one sum over the whole step whatever the micro-batches, and everything it
depends on is in its save point: a resumed run ends with the same bytes as one that was never interrupted.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from configs.recipes import Optimizer
from engine import checkpoint
from engine.batches import Padded, micro_batches, permutation
from engine.errors import StageError
from engine.examples import UNKNOWN, Item
from engine.job import Job
from engine.packing import Shape, arrange
from engine.reference import Logps, check_start, flatten, unflatten, wide
from engine.sharding import trainer_for
from methods.batch import Batch, Metrics, denominator


@dataclass(frozen=True)
class Fit:
    """One offline run. `rows(step)` gives the rows of step 1 .. steps and depends on nothing but the step."""

    model: Any
    method: ModuleType
    config: Any  # the method's Config
    optimizer: Optimizer
    steps: int
    rows: Callable[[int], Sequence[int]]  # step -> indices for `item`
    item: Callable[[int], Item]
    pad_id: int
    dtype: str = "float32"
    dropout: float = 0.0
    seed: int = 0  # of the dropout noise, where several processes share a step
    reference: Callable[[], Logps] | None = None  # log-probs of every item's responses, computed once
    shape: Shape | None = None  # of the model, where sequences may be packed
    same_start: bool = False  # the model begins as the reference: at step 1 their log-probs must be equal
    trainer: Callable[..., Any] = trainer_for
    data: Callable[[int], dict[str, Any]] | None = (
        None  # where the data stands after a step, as JSON: in every save point
    )
    observe: Callable[[int], Mapping[str, float]] | None = (
        None  # more to say of a step just done, in its row of the curve
    )


def epochs(
    count: int,
    batch: int,
    share: float,
    *,
    seed: int,
    limit: int = 0,
    replay: tuple[int, int] = (0, 0),
    keys: Sequence[str] | None = None,
) -> list[list[int]]:
    """The rows of every step: whole epochs in fresh orders, each with its last partial batch.

    Args:
        count: rows 0 .. count - 1.
        batch: rows a step.
        share: epochs; 1.5 is one and a half.
        limit: most steps, 0 = no limit.
        replay: (pool, extra): each epoch also sees `extra` rows out of count .. count + pool - 1, all of them in turn.
        keys: rows of equal key stay in one batch, which may then be smaller.
    """
    pool, extra = replay
    steps: list[list[int]] = []
    for epoch in range(math.ceil(share)):
        rows = list(range(count))
        if extra:
            turns = range(epoch * extra, (epoch + 1) * extra)
            orders = {turn: permutation(seed, "replay", turn, pool) for turn in {t // pool for t in turns}}
            rows += [count + orders[t // pool][t % pool] for t in turns]
        order = [rows[i] for i in permutation(seed, "rows", epoch, len(rows))]
        found = _cut(order, batch, keys)
        left = min(1.0, share - epoch)
        steps += found[: math.ceil(round(left * len(found), 9))]
    return steps[:limit] if limit else steps


def _cut(order: list[int], batch: int, keys: Sequence[str] | None) -> list[list[int]]:
    if keys is None:
        return [order[i : i + batch] for i in range(0, len(order), batch)]
    together: dict[str, list[int]] = {}
    for i in order:
        together.setdefault(keys[i], []).append(i)
    cuts: list[list[int]] = []
    for rows in together.values():
        if not cuts or len(cuts[-1]) + len(rows) > batch:
            cuts.append([])
        cuts[-1].extend(rows)
    return cuts


def fit(job: Job, plan: Fit) -> tuple[Any, dict[str, Any]]:
    """Run the plan from the last save point to its end.

    Returns the trained model in evaluation mode, and: steps, learned tokens, the mean loss of the last tenth of the steps, how
    many steps had nothing to learn.

    Raises:
        StageError: loss or gradient not finite (the message says where the batch is), no token to learn from, or
            weights that did not move.
    """
    if plan.steps < 1:
        raise StageError("no training step: there are no rows left to train on")
    counters = {"tokens": 0, "rows": 0, "empty_steps": 0, "sequences": 0, "sequence_tokens": 0, "squares": 0}
    start, sums, reference = 0, checkpoint.sums(plan.model), None
    trainer = plan.trainer(plan.model, plan.optimizer, plan.steps, job.runtime, plan.dtype)
    if point := job.resume():
        trainer.restore(point.path, point.record["model"])
        checkpoint.restore_random(point.path / "random.safetensors")
        start, counters, sums = point.step, dict(point.record["counters"]), point.record["sums"]
        _check_data(plan, start, point.record)
        if (path := point.path / "reference.safetensors").exists():
            reference = unflatten(checkpoint.read_tensors(path))
    if plan.reference and reference is None:
        reference = plan.reference()

    def write(folder: Path) -> dict[str, Any]:
        checkpoint.save_random(folder / "random.safetensors")
        if reference is not None:
            checkpoint.write_tensors(folder / "reference.safetensors", flatten(reference))
        record = {"model": trainer.save(folder), "counters": counters, "sums": sums}
        return {**record, "data": plan.data(step)} if plan.data else record

    plan.model.train()
    began = time.monotonic()
    for step in range(start + 1, plan.steps + 1):
        rows = plan.rows(step)
        items = [plan.item(i) for i in rows]
        fixed = None if reference is None else [reference[i] for i in rows]
        trainer.begin(plan.seed, step)
        values = _step(job, plan, trainer, step, items, fixed, counters)
        job.metrics(step, {**values, **(plan.observe(step) if plan.observe else {})})
        job.progress(step, plan.steps)
        if trainer.agree(step < plan.steps and job.should_save(step)):
            trainer.collect()
            if trainer.main:
                job.save(step, write)
    seconds = time.monotonic() - began
    job.timing("steps", seconds)
    done = plan.steps - start
    job.log(f"{done} steps in {seconds:.1f} s, {done / max(seconds, 1e-9):.2f} steps/s")
    model = trainer.gather()
    _check_end(plan, model, trainer.updates, counters, sums)
    tail = job.rows[-max(1, plan.steps // 10) :]
    return model, {"steps": plan.steps, **counters, "loss": sum(row["loss"] for row in tail) / len(tail)}


def _check_data(plan: Fit, step: int, record: Mapping[str, Any]) -> None:
    if plan.data and record.get("data") != plan.data(step):
        raise StageError(f"save point {step} stands at {record.get('data')} in the data, this run at {plan.data(step)}")


def _check_end(plan: Fit, model: Any, updates: int, counters: dict[str, int], sums: dict[str, float]) -> None:
    if updates + counters["empty_steps"] != plan.steps:
        raise StageError(f"{updates} optimizer steps were done, {plan.steps} were planned")
    if counters["tokens"] == 0:
        raise StageError("no token had a loss: every response is empty or masked")
    after = checkpoint.sums(model)
    if bad := [name for name, total in after.items() if not math.isfinite(total)]:
        raise StageError(
            f"weights are not finite after the last step: {bad[0]} ({len(bad)} in all); lower the learning rate"
        )
    if after == sums:
        raise StageError("training did not move any weight: is the learning rate 0?")


def _step(
    job: Job,
    plan: Fit,
    trainer: Any,  # sharding.Plain or zero.Zero
    step: int,
    items: Sequence[Item],
    reference: Logps | None,
    counters: dict[str, int],
) -> dict[str, float]:
    """One optimizer step; returns its row of the curve."""
    parts = micro_batches([item.lengths for item in items], job.runtime.train_rows)
    progress = (step - 1) / max(1, plan.steps - 1)
    device = job.runtime.device
    share = [(parts[i], counts) for i, counts in trainer.share(len(parts))]
    padded = [_collate(plan, [items[i] for i in part]).to(device) for part, _ in share]
    batches = [batch(p, [items[i] for i in part], part, progress) for p, (part, _) in zip(padded, share)]
    weights = [float(counts) for _, counts in share]  # 0: computed only because all processes compute as much
    count = trainer.total(sum(w * denominator(plan.method, b) for w, b in zip(weights, batches)))  # type: ignore[arg-type]
    learned = int(trainer.total(sum(w * p.response_mask.sum() for w, p in zip(weights, padded))))  # type: ignore[arg-type]
    if learned == 0 or float(count) == 0:
        counters["empty_steps"] += 1
        return {"loss": 0.0, "rate": trainer.rate, "tokens": 0.0}
    totals: dict[str, tuple[float, float]] = {}
    whole = torch.zeros((), device=device)
    for (part, counts), pad, one in zip(share, padded, batches):
        forwards = trainer.forward(plan.method.forwards, pad)
        if reference is not None:
            forwards["reference_logp"] = wide(pad, [reference[i] for i in part])
            if step == 1 and plan.same_start and plan.dropout == 0:
                check_start(forwards, plan.dtype)
        loss, metrics = plan.method.loss(forwards, _counted(one, count), plan.config)
        trainer.backward(loss * float(counts))
        if counts:
            whole += loss.detach()
            _add(totals, metrics)
    whole, totals = trainer.total(whole), trainer.merge(totals)
    rate = trainer.rate
    try:
        if not bool(torch.isfinite(whole)):
            raise StageError(f"loss {float(whole)} at step {step}: not finite")
        norm = trainer.step()
    except StageError as error:
        where = _write_bad_batch(job, step, items)
        raise StageError(f"{error}; its rows are in {where}; lower the learning rate or look at them") from None
    counters["tokens"] += learned
    counters["rows"] += len(items)
    lengths = [length for item in items for length in item.lengths]
    counters["sequences"] += len(lengths)
    counters["sequence_tokens"] += sum(lengths)  # tokens of prompts and responses
    counters["squares"] += sum(length * length for length in lengths)  # what attention costs
    means = {name: total / n for name, (total, n) in totals.items() if n > 0}
    return {"loss": float(whole), "rate": rate, "gradient_norm": norm, "tokens": float(learned), **means}


def batch(padded: Padded, items: Sequence[Item], groups: Sequence[int], progress: float) -> Batch:
    """What the method sees of a micro-batch; `count` is its own until the step's is known.

    groups: [len(items)] index of each row in its step.
    """
    sizes = [len(item.responses) for item in items]
    spread = lambda values, dtype: torch.tensor(
        [v for v, size in zip(values, sizes) for _ in range(size)], dtype=dtype, device=padded.ids.device
    )
    flat = lambda values: torch.tensor(values, dtype=torch.float32, device=padded.ids.device)
    labels = flat([label for item in items for label in (item.labels or [()] * len(item.responses))])
    labels = labels.reshape(sum(sizes), -1)
    known = labels != UNKNOWN
    return Batch(
        mask=padded.response_mask,
        group=spread(groups, torch.int64),
        rank=torch.tensor([k for size in sizes for k in range(size)], device=padded.ids.device),
        score=flat([score for item in items for score in item.scores]),
        grade=spread([item.grade for item in items], torch.float32),
        label=torch.where(known, labels, 0.0),
        label_mask=known,
        weight=spread([item.weight for item in items], torch.float32),
        progress=progress,
        count=padded.response_mask.sum().float(),
    )


def _counted(one: Batch, count: Tensor) -> Batch:
    return Batch(**{**{name: getattr(one, name) for name in Batch.__dataclass_fields__}, "count": count})


def _collate(plan: Fit, items: Sequence[Item]) -> Padded:
    pairs = [pair for item in items for pair in item.pairs()]
    return arrange(pairs, pad_id=plan.pad_id, shape=plan.shape, learned=[m for item in items for m in item.learned])


def _add(totals: dict[str, tuple[float, float]], metrics: Metrics) -> None:
    for name, (total, count) in metrics.items():
        held = totals.get(name, (0.0, 0.0))
        totals[name] = (held[0] + float(total), held[1] + float(count))


def _write_bad_batch(job: Job, step: int, items: Sequence[Item]) -> Path:
    path = job.out / "_beside" / "bad-batch.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"key": item.key, "prompt": item.prompt.tolist(), "responses": [r.tolist() for r in item.responses]}
        for item in items
    ]
    path.write_text(json.dumps({"step": step, "rows": rows}, indent=1) + "\n")
    return path
