"""DeepSpeed in two processes against torch in one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from online_runs import recipe
from safetensors.torch import load_file
from test_workers import ended, start, until

from configs.recipes import Tripwires
from configs.runtime import Runtime
from engine.places import free_port
from storage import Ref, Store, open_store
from storage.rows import read_rows, write_rows

pytestmark = pytest.mark.slow
LIMITS = {"prompt_tokens": 60, "response_tokens": 12}
LORA = {"lora": {"rank": 3, "alpha": 8.0}}
OPTIMIZER = {"learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0, "min_warmup_steps": 0}


def put(store: Store, kind: str, name: str, folder: Path) -> str:
    """The key of an artifact with a folder's files."""
    draft = store.draft(Ref(kind, name, "0" * 16))
    for path in folder.iterdir():
        if path.is_file():
            (draft.path / path.name).write_bytes(path.read_bytes())
    draft.commit({})
    return Ref(kind, name, "0" * 16).key


@pytest.fixture
def store(policy: Path, tmp_path: Path) -> Store:
    """A store with a policy, five examples and five pairs (odd, so that micro-batches do not divide evenly)."""
    opened = open_store((tmp_path / "store").as_uri())
    put(opened, "model", "base", policy)
    shared = {"category": "c", "is_safety": False, "source": "s"}
    asked = [
        [{"role": "user", "content": f"tell me {word}"}] for word in ("red", "old bird", "green", "small", "a story")
    ]
    examples = [
        {"id": str(i), "messages": [*m, {"role": "assistant", "content": "the fox " * (i + 1)}], **shared}
        for i, m in enumerate(asked)
    ]
    pairs = [
        {"prompt_id": str(i), "messages": m, "chosen": "the red fox", "rejected": f"a bird {i}", "grade": i % 4,
         "kind": "helpfulness", "annotator": "a", **shared} for i, m in enumerate(asked)
    ]  # fmt: skip
    for name, schema, rows in (("examples", "Example", examples), ("pairs", "Preference", pairs)):
        draft = opened.draft(Ref("rows", name, "0" * 16))
        write_rows(draft.path / "rows.parquet", schema, rows)
        draft.commit({})
    return opened


def spec(store: Store, out: Path, stage: str, changes: dict[str, Any], runtime: dict[str, Any]) -> dict[str, Any]:
    rows = "rows/examples-" if stage == "train" and changes.get("method", "sft") == "sft" else "rows/pairs-"
    role = "rows" if stage == "train" else "preferences"
    recipe = {"optimizer": OPTIMIZER, "batch_size": 5, "epochs": 4, "limits": LIMITS} | changes
    out.mkdir()
    return {
        "stage": stage, "label": stage, "recipe": recipe, "store": store.url, "ref": Ref("model", out.name, "1" * 16).key,
        "inputs": {"model": Ref("model", "base", "0" * 16).key, role: [rows + "0" * 16]}, "out": str(out),
        "runtime": Runtime(**{"train_rows": 2, **runtime}).model_dump(mode="json"),
    }  # fmt: skip


def run(given: dict[str, Any], tmp_path: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The curve and the weights of a stage run by `python -m engine.run`."""
    path = tmp_path / f"{Path(given['out']).name}.json"
    path.write_text(json.dumps(given))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "engine.run", str(path)], cwd=root, text=True, capture_output=True, timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counted(json.loads(done.stdout.strip().splitlines()[-1]), given["runtime"].get("processes", 1))
    out = Path(given["out"])
    curve = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return curve, load_file(out / "model.safetensors")


def counted(done: dict[str, Any], processes: int) -> None:
    """The stage's record counts what all of its processes took."""
    each = done.get("processes", [])
    assert done["event"] == "done" and len(each) == (processes if processes > 1 else 0)
    if each:
        assert done["cpu_seconds"] == sum(one["cpu_seconds"] for one in each) > each[0]["cpu_seconds"] > 0
        assert done["peak_bytes"] == max(one["peak_bytes"] for one in each) > 0


def equal(a: Any, b: Any, curve: float, weights: float) -> None:
    assert len(a[0]) == len(b[0]) > 0
    for one, two in zip(a[0], b[0]):
        assert set(one) == set(two)
        if (
            abs(one.get("margin", 1.0)) < 1e-6
        ):  # the policy is the reference still: which response it prefers is rounding
            one, two = ({k: v for k, v in row.items() if k != "accuracy"} for row in (one, two))
        assert all(abs(one[k] - two[k]) <= curve * max(1.0, abs(one[k])) for k in one), (one, two)
    assert all(torch.allclose(a[1][n], b[1][n], rtol=0, atol=weights) for n in a[1])


def shared(zero: int, **more: Any) -> dict[str, Any]:
    return {"launcher": "deepspeed", "processes": 2, "zero": zero, **more}


@pytest.fixture
def online(store: Store, policy: Path, rewards: list[Path], prompts: Path, examples: Path, tmp_path: Path) -> Any:
    """`online(out, runtime, **changes)`: the spec of a PPO run; its minibatches of 8 make three micro-batches."""
    inputs = {
        "policy": Ref("model", "base", "0" * 16).key,
        "rewards": [put(store, "model", f"reward-{i}", folder) for i, folder in enumerate(rewards)],
        "prompts": put(store, "rows", "prompts", prompts),
        "examples": [put(store, "rows", "demonstrations", examples)],
    }

    def made(out: str, runtime: dict[str, Any], **changes: Any) -> dict[str, Any]:
        (tmp_path / out).mkdir()
        settings: dict[str, Any] = {
            "iterations": 3, "warmup_batches": 1, "k": 2, "ptx_weight": 0.5, "ptx_batch_size": 5,
            "tripwires": Tripwires(on_alarm="stop", anchor=1, min_explained=-1e9), **changes,
        }  # fmt: skip
        return {
            "stage": "online", "label": "online", "recipe": recipe(**settings).model_dump(mode="json"), "store": store.url,
            "ref": Ref("model", out, "1" * 16).key, "inputs": inputs, "out": str(tmp_path / out),
            "runtime": {"train_rows": 3, "score_rows": 16, "sample_rows": 16, **runtime},
        }  # fmt: skip

    return made


@pytest.mark.parametrize("stages", [("0", "1"), pytest.param(("2", "3"), marks=pytest.mark.slow_short)])
def test_unlike_batches_train_save_and_publish_the_same(stages: tuple[str, ...]) -> None:
    """A whole model and adapters on one, in two processes that compute a long prompt and a long response: ZeRO-3 would mix up
    the weights that it fetches, ZeRO-2 the gradients that it adds up, if each took its shortest way."""
    port, root = free_port("127.0.0.1"), Path(__file__).parents[2]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(root),
              "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}  # fmt: skip
    parties = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zero_paths.py")), *stages], cwd=root, stdout=subprocess.PIPE,
            text=True, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, party in enumerate(parties):
        said, _ = party.communicate(timeout=600)
        told = json.loads(said.strip().splitlines()[-1])
        assert set(told) == {f"{kind} {zero}" for kind in ("model", "adapted") for zero in stages}
        for gaps in told.values():
            assert ("published" in gaps) == (rank == 0)
            assert max(gaps.values()) < 1e-6, told


IN_CI = [0, 1, pytest.param(2, marks=pytest.mark.slow_short), pytest.param(3, marks=pytest.mark.slow_short)]


@pytest.mark.parametrize("zero", IN_CI)
def test_two_processes_equal_one(zero: int, store: Store, tmp_path: Path) -> None:  # T51, T52, T53
    plain = run(spec(store, tmp_path / "plain", "train", {}, {}), tmp_path)
    two = run(spec(store, tmp_path / "two", "train", {}, shared(zero)), tmp_path)
    equal(plain, two, curve=1e-5, weights=1e-5)


@pytest.mark.parametrize("lora", [{}, LORA])
@pytest.mark.parametrize("stage, method", [("train", "dpo"), ("reward", "reward")])
def test_pairs_and_rewards_too(stage: str, method: str, lora: dict[str, Any], store: Store, tmp_path: Path) -> None:
    changes = {"method": method, **lora} | ({"own_share": 1.0, "held_out": 0.0} if stage == "reward" else {})
    plain = run(spec(store, tmp_path / "plain", stage, changes, {"train_rows": 4}), tmp_path)
    two = run(spec(store, tmp_path / "two", stage, changes, shared(3, train_rows=4)), tmp_path)
    equal(plain, two, curve=1e-5, weights=1e-5)


@pytest.mark.parametrize("zero, lora", [(0, {}), (2, {}), (3, LORA)])
def test_bfloat16_with_offload_learns_the_same(zero: int, lora: dict[str, Any], store: Store, tmp_path: Path) -> None:
    whole = run(spec(store, tmp_path / "whole", "train", lora, {}), tmp_path)
    changes = {"dtype": "bfloat16", **lora}
    half = run(spec(store, tmp_path / "half", "train", changes, shared(zero, offload=True)), tmp_path)
    assert abs(whole[0][-1]["loss"] - half[0][-1]["loss"]) < 0.02 * whole[0][0]["loss"]


@pytest.mark.parametrize("first, second, lora", [(shared(2), {}, {}), ({}, shared(3), {}), ({}, shared(3), LORA),
                                                  (shared(3), shared(0, processes=1), {}), (shared(3), {}, LORA)])  # fmt: skip
def test_save_points_resume_in_another_layout(
    first: dict[str, Any], second: dict[str, Any], lora: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    """A stage saved under one layout at step 2 goes on under another and ends where an undisturbed one does."""
    plain = run(spec(store, tmp_path / "plain", "train", lora, {}), tmp_path)
    changes = {"max_steps": 4, **lora}
    begun = spec(store, tmp_path / "begun", "train", changes, {**first, "save_steps": 2})
    run(begun, tmp_path)  # its only save point is that of step 2
    saves = store.save_points(Ref.parse(begun["ref"]))
    point = saves.latest()
    assert point is not None and point.step == 2
    resumed = spec(store, tmp_path / "resumed", "train", changes, second) | {"ref": begun["ref"]}
    equal(plain, run(resumed, tmp_path), curve=1e-5, weights=1e-5)


@pytest.mark.parametrize("rank, zero", [(0, 2), (1, 3)])
def test_a_killed_process_ends_the_stage_and_the_next_run_goes_on(
    rank: int, zero: int, store: Store, tmp_path: Path
) -> None:
    """Adapters, a row a micro-batch, 5 rows a step for 4 or 3 processes."""
    changes = {"epochs": 60, **LORA}
    plain = run(spec(store, tmp_path / "plain", "train", changes, {"train_rows": 1}), tmp_path)
    layout = shared(zero, processes=6 - zero, train_rows=1, save_steps=5)
    given = spec(store, tmp_path / "first", "train", changes, layout)
    process = start(given, tmp_path / "first.json")
    until(process, "saved")
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [one for one in family if "engine.workers" in one.cmdline()]
    next(one for one in workers if one.environ()["RANK"] == str(rank)).kill()
    assert ended(process) == -signal.SIGKILL  # so that whoever started it tries again
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    again = spec(store, tmp_path / "second", "train", changes, layout) | {"ref": given["ref"]}
    equal(plain, run(again, tmp_path), curve=1e-5, weights=1e-5)


@pytest.mark.parametrize("zero", IN_CI)
def test_the_online_loop_shares_rollouts_and_steps(zero: int, online: Any, tmp_path: Path) -> None:  # T51, T52, T61
    """Policy, critic, language-model term, anchors: the curve and the weights of two processes are those of one."""
    plain = run(online("plain", {}), tmp_path)
    two = run(online("two", shared(zero)), tmp_path)
    assert {"score", "kl", "policy_norm", "critic_norm", "value_loss", "ptx_nll", "ratio_max"} <= set(plain[0][-1])
    equal(plain, two, curve=1e-4, weights=1e-5)


@pytest.mark.parametrize("zero", [2, 3])
def test_the_online_loop_shares_adapters_too(zero: int, online: Any, tmp_path: Path) -> None:  # T35
    """The reference is the policy with its adapters off; under ZeRO-3 that of the whole copy with which a process samples: of
    8 prompts three processes read 3, 3 and 2, one by one; by the partitioned model they would wait for each other."""
    plain = run(online("plain", {}, **LORA), tmp_path)
    two = run(online("two", shared(zero, processes=3, score_rows=2), **LORA), tmp_path)
    assert abs(plain[0][-1]["kl"]) > 1e-6
    equal(plain, two, curve=1e-4, weights=1e-5)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_an_alarm_brings_all_processes_back_to_the_anchor(zero: int, online: Any, tmp_path: Path) -> None:
    """The critic of random rewards is worse than a constant: the run stops and publishes the anchor's weights."""
    wires = {"tripwires": Tripwires(on_alarm="stop", anchor=1, min_explained=-0.1)}
    plain = run(online("plain", {}, **wires), tmp_path)
    two = run(online("two", shared(zero), **wires), tmp_path)
    for name in ("plain", "two"):
        assert list((tmp_path / name).glob("alarm-*.json"))
    equal(plain, two, curve=1e-4, weights=1e-5)


def test_the_online_loop_learns_the_same_in_bfloat16_with_offload(online: Any, tmp_path: Path) -> None:
    """DeepSpeed samples with weights in bfloat16: a few responses differ in a token; the others are scored alike."""
    half = {"dtype": "bfloat16", "iterations": 1, "warmup_batches": 0}
    plain = run(online("plain", {}, **half), tmp_path)
    two = run(online("two", shared(3, offload=True), **half), tmp_path)
    for name in ("entropy", "policy_norm", "value_loss", "ptx_nll"):
        assert two[0][0][name] == pytest.approx(plain[0][0][name], rel=0.1), name
    wanted, found = (read_rows(tmp_path / name / "rollouts-last.parquet", "Scored") for name in ("plain", "two"))
    alike = [(a, b) for a, b in zip(wanted, found, strict=True) if a["token_ids"] == b["token_ids"]]
    assert len(alike) >= 8  # of 16
    assert all(a["helpfulness"] == pytest.approx(b["helpfulness"], abs=1e-5) for a, b in alike)


@pytest.mark.parametrize("first, second", [(shared(3), {}), ({}, shared(2))])
def test_online_save_points_resume_in_another_layout(
    first: dict[str, Any], second: dict[str, Any], online: Any, store: Store, tmp_path: Path
) -> None:
    plain = run(online("plain", {}), tmp_path)
    begun = online("begun", {**first, "save_steps": 2})
    run(begun, tmp_path)
    point = store.save_points(Ref.parse(begun["ref"])).latest()
    assert point is not None and point.step == 2
    resumed = online("resumed", second) | {"ref": begun["ref"]}
    equal(plain, run(resumed, tmp_path), curve=1e-4, weights=1e-5)
