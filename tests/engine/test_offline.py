import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import methods
from configs.recipes import Optimizer
from configs.runtime import Runtime
from engine.errors import StageError
from engine.examples import Item
from engine.models import load_policy, reward_from_policy
from engine.offline import Fit, epochs, fit
from engine.packing import Shape, shape_of
from engine.reference import flatten, reference_logps, unflatten

OPTIMIZER = Optimizer(learning_rate=1e-2, schedule="constant", warmup=0.0, min_warmup_steps=0)


def items(count: int, responses: int = 1, seed: int = 3) -> list[Item]:
    draw = np.random.Generator(np.random.PCG64(seed))
    ids = lambda low, high: draw.integers(3, 300, size=draw.integers(low, high)).astype(np.int32)
    return [
        Item(ids(2, 9), tuple(ids(1, 7) for _ in range(responses)), (None,) * responses,
             tuple(float(responses - k) for k in range(responses)), key=f"k{i // 2}")
        for i in range(count)
    ]  # fmt: skip


def plan(model: Any, rows: list[Item], steps: list[list[int]], name: str = "sft", **more: Any) -> Fit:
    method = methods.load(name)
    more.setdefault("shape", shape_of(model))
    return Fit(model=model, method=method, config=method.Config(), optimizer=OPTIMIZER, steps=len(steps), pad_id=0,
               rows=lambda step: steps[step - 1], item=rows.__getitem__, **more)  # fmt: skip


def test_epochs_see_every_row_once_with_a_last_partial_batch() -> None:  # T58
    steps = epochs(10, 4, 2, seed=1)
    assert [len(s) for s in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*steps[:3])) == sorted(chain(*steps[3:])) == list(range(10))
    assert steps[:3] != steps[3:] and steps == epochs(10, 4, 2, seed=1) != epochs(10, 4, 2, seed=2)
    assert epochs(10, 4, 1.5, seed=1) == steps[:5] and epochs(10, 4, 2, seed=1, limit=3) == steps[:3]
    assert len(epochs(10, 4, 0.1, seed=1)) == 1


def test_replayed_rows_are_the_share_and_take_turns() -> None:
    steps = epochs(9, 100, 4, seed=1, replay=(3, 1))
    extra = [[i for i in step if i >= 9] for step in steps]
    assert all(len(e) == 1 for e in extra) and {e[0] for e in extra[:3]} == {9, 10, 11}
    assert all(sorted(i for i in step if i < 9) == list(range(9)) for step in steps)


def test_rows_of_a_prompt_stay_in_one_batch() -> None:
    keys = [f"p{i // 3}" for i in range(12)]
    steps = epochs(12, 7, 2, seed=1, keys=keys)
    assert sorted(chain(*steps)) == sorted([*range(12)] * 2)
    for step in steps:
        assert len(step) <= 7 and all(sum(keys[i] == k for i in step) == 3 for k in {keys[i] for i in step})


def first_step(
    name: str, rows: list[Item], policy: Path, job: Any, **more: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step on all rows."""
    model = reward_from_policy(policy, Runtime(), 1) if name.startswith("reward") else load_policy(policy, Runtime())
    grads: dict[str, torch.Tensor] = {}
    for n, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, n=n, g=grads: g.__setitem__(n, p.grad.clone()))
    if name == "dpo":
        fixed = reference_logps(model, rows, pad_id=0, rows=4)
        more |= {"reference": lambda fixed=fixed: fixed, "same_start": True}
    fit(job, plan(model, rows, [list(range(len(rows)))], name, **more))
    return job.rows[0]["loss"], grads


def same_step(one: Any, two: Any, bound: float) -> None:
    assert abs(one[0] - two[0]) < bound * max(1, abs(one[0]))
    for n, wanted in one[1].items():
        assert torch.allclose(two[1][n], wanted, rtol=0, atol=bound * max(1, float(wanted.abs().max()))), n


@pytest.mark.parametrize("name, responses", [("sft", 1), ("dpo", 2), ("rrhf", 3), ("reward", 2)])
def test_micro_batches_change_nothing(
    name: str, responses: int, policy: Path, make_job: Callable[..., Any]
) -> None:  # T50
    """1 x 8, 4 x 2 and 8 x 1 rows give the same gradient."""
    rows = items(8, responses)
    whole, *parts = [
        first_step(name, rows, policy, make_job("train", None, out=f"o{size}", runtime={"train_rows": size}))
        for size in (0, 2 * responses, responses)
    ]
    for part in parts:
        same_step(whole, part, 1e-6)


@pytest.mark.parametrize(
    "name, responses", [("sft", 1), ("dpo", 2), ("rrhf", 3), ("pro", 3), ("reward", 2), ("reward-ranking", 3)]
)
def test_a_packed_step_is_that_of_one_row_at_a_time(
    name: str, responses: int, policy: Path, make_job: Callable[..., Any]
) -> None:
    """Prompts computed once and rows laid side by side: the loss and the gradients of padded rows, each alone."""
    rows = items(6, responses)
    alone = make_job("train", None, out="alone", runtime={"train_rows": 1})
    found = first_step(name, rows, policy, make_job("train", None), shape=Shape(matrices=1e6, attention=1.0))
    same_step(first_step(name, rows, policy, alone, shape=None), found, 1e-5)


def test_dpo_begins_at_log_two(policy: Path, make_job: Callable[..., Any]) -> None:
    rows, model = items(4, 2), load_policy(policy, Runtime())
    fixed = reference_logps(model, rows, pad_id=0, rows=2)
    job = make_job("train", None)
    fit(job, plan(model, rows, [[0, 1, 2, 3]] * 2, "dpo", reference=lambda: fixed, same_start=True))
    assert abs(job.rows[0]["loss"] - 0.693147) < 1e-5 and job.rows[1]["loss"] < 0.69


def test_wrong_reference_is_found_before_the_first_step(
    policies: dict[str, Path], policy: Path, make_job: Callable[..., Any]
) -> None:
    rows = items(2, 2)
    other = reference_logps(load_policy(policies["qwen2"], Runtime()), rows, pad_id=0, rows=2)
    with pytest.raises(StageError, match="reference is not the model that training starts from"):
        one = plan(load_policy(policy, Runtime()), rows, [[0, 1]], "dpo", reference=lambda: other, same_start=True)
        fit(make_job("train", None), one)


def test_reference_does_not_drift(policy: Path, make_job: Callable[..., Any]) -> None:  # T36
    rows, frozen = items(4, 2), load_policy(policy, Runtime())
    before = {n: p.clone() for n, p in frozen.named_parameters()}
    fixed = reference_logps(frozen, rows, pad_id=0, rows=2)
    fit(
        make_job("train", None),
        plan(load_policy(policy, Runtime()), rows, [[0, 1, 2, 3]] * 3, "dpo", reference=lambda: fixed),
    )
    assert all(torch.equal(p, before[n]) for n, p in frozen.named_parameters())
    again = unflatten(flatten(fixed))
    assert all(np.array_equal(a, b) for x, y in zip(fixed, again) for a, b in zip(x, y))


def test_loss_falls_and_batches_are_forgotten(policy: Path, make_job: Callable[..., Any]) -> None:
    job, rows = make_job("train", None), items(8)
    _, summary = fit(job, plan(load_policy(policy, Runtime()), rows, [list(range(8))] * 30))
    assert job.rows[-1]["loss"] < 0.5 * job.rows[0]["loss"]
    assert summary["steps"] == 30 and summary["tokens"] == 30 * sum(len(i.responses[0]) for i in rows)


def test_steps_without_a_token_are_counted_and_skipped(policy: Path, make_job: Callable[..., Any]) -> None:  # T09
    rows = items(2)
    silent = Item(rows[1].prompt, rows[1].responses, (np.zeros(len(rows[1].responses[0]), dtype=bool),), (0.0,))
    job = make_job("train", None)
    _, summary = fit(job, plan(load_policy(policy, Runtime()), [rows[0], silent], [[0], [1], [0]]))
    assert summary["empty_steps"] == 1 and job.rows[1]["loss"] == 0.0
    with pytest.raises(StageError, match="no token had a loss"):
        fit(make_job("train", None, out="x"), plan(load_policy(policy, Runtime()), [silent], [[0]]))


def test_weights_that_do_not_move_are_an_error(policy: Path, make_job: Callable[..., Any]) -> None:
    rows = items(2)
    still = plan(load_policy(policy, Runtime()), rows, [[0, 1]])
    still = Fit(**{**vars(still), "optimizer": OPTIMIZER.model_copy(update={"learning_rate": 1e-30})})
    with pytest.raises(StageError, match="did not move any weight"):
        fit(make_job("train", None), still)
    with pytest.raises(StageError, match="no rows left to train on"):
        fit(make_job("train", None), plan(load_policy(policy, Runtime()), rows, []))


def test_weights_that_the_last_step_broke_are_not_published(policy: Path, make_job: Callable[..., Any]) -> None:
    """A step of a size beyond fp32 from a finite gradient: no later loss is there to tell."""
    broken = plan(load_policy(policy, Runtime()), items(2), [[0, 1]])
    with torch.no_grad():
        next(broken.model.parameters()).view(-1)[-1] = 3.4e38  # of a token that nobody reads
    rate = OPTIMIZER.model_copy(update={"learning_rate": 3e38, "weight_decay": 10.0})
    with pytest.raises(StageError, match=r"weights are not finite after the last step: .*; lower the learning rate"):
        fit(make_job("train", None), Fit(**{**vars(broken), "optimizer": rate}))


def test_bad_batch_is_written_and_named(policy: Path, make_job: Callable[..., Any]) -> None:
    job, rows, model = make_job("train", None), items(4), load_policy(policy, Runtime())
    model.model.embed_tokens.weight.data[int(rows[2].prompt[0])] = float("nan")
    with pytest.raises(
        StageError, match=r"loss nan at step 2: not finite; its rows are in /.*/_beside/bad-batch\.json"
    ):
        fit(job, plan(model, rows, [[0], [2, 3]]))
    found = json.loads((job.out / "_beside/bad-batch.json").read_text())
    assert found["step"] == 2 and [r["prompt"] for r in found["rows"]] == [
        rows[2].prompt.tolist(),
        rows[3].prompt.tolist(),
    ]


class Killed(Exception):
    """The process died here."""


def _die_after(job: Any, saves: int) -> None:
    save, left = job.save, [saves]

    def counted(step: int, write: Any) -> None:
        save(step, write)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    job.save = counted


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_run_killed_twice_ends_with_the_same_bytes(
    name: str, policies: dict[str, Path], make_job: Callable[..., Any], save_points: Callable[[], Any]
) -> None:  # T54, T56, T57, T58, T90
    """Dropout is on, so that the random state counts; the second death is at an epoch's end (step 6)."""
    rows, responses = items(6, 2), 2 if name == "dpo" else 1
    rows = [Item(i.prompt, i.responses[:responses], (None,) * responses, i.scores[:responses]) for i in rows]
    steps = epochs(6, 2, 3.3, seed=5)

    def go(out: str, saves: Any, die: int = 0) -> tuple[Any, dict[str, Any], list[list[int]]]:
        torch.manual_seed(1)
        seen: list[list[int]] = []
        model = load_policy(policies["gpt2"], Runtime(), dropout=0.1)
        fixed = lambda: reference_logps(load_policy(policies["gpt2"], Runtime()), rows, pad_id=0, rows=2)
        more = {"reference": fixed, "dropout": 0.1} if name == "dpo" else {"dropout": 0.1}
        one = plan(model, rows, steps, name, **more)
        one = Fit(**{**vars(one), "rows": lambda step: seen.append(steps[step - 1]) or steps[step - 1]})
        job = make_job("train", None, out=out, saves=saves, runtime={"save_steps": 3})
        if not die:
            return model, job, fit(job, one)[1], seen
        _die_after(job, die)
        with pytest.raises(Killed):
            fit(job, one)
        return model, job, {}, seen

    whole = go("whole", None)
    first = go("first", save_points(), die=1)
    second = go("second", save_points(), die=1)
    last = go("last", save_points())
    assert len(steps) == 10 and first[3] + second[3] + last[3] == whole[3] == steps
    assert last[1].rows == whole[1].rows and last[2] == whole[2]
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), last[0].parameters()))


def test_bfloat16_trains_weights_kept_in_float32(policy: Path, make_job: Callable[..., Any]) -> None:
    model, rows = load_policy(policy, Runtime()), items(8)
    job = make_job("train", None)
    fit(job, plan(model, rows, [list(range(8))] * 5, dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert job.rows[-1]["loss"] < job.rows[0]["loss"]
    assert SimpleNamespace(**job.rows[0]).tokens == sum(len(i.responses[0]) for i in rows)
