"""A stage in several processes on this machine: replicas of the sampler, and what happens when a process is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.recipes import Limits, Sample
from configs.runtime import Runtime
from engine import sample, workers
from storage import Ref, Store, open_store

ROOT = Path(__file__).parents[2]
RECIPE = Sample(prompts=40, k=4, temperature=1.1, shards=8, limits=Limits(prompt_tokens=90, response_tokens=30))


def commit(store: Store, kind: str, name: str, source: Path) -> str:
    """A folder's files as an artifact; returns its key."""
    draft = store.draft(Ref(kind, name, "0" * 16))
    for path in source.iterdir():
        (draft.path / path.name).write_bytes(path.read_bytes())
    draft.commit({})
    return draft.ref.key


def sample_spec(store: Store, policy: Path, prompts: Path, out: Path, **runtime: Any) -> dict[str, Any]:
    """A sampling stage of eight shards, row by row: slow enough to be killed in the middle."""
    out.mkdir()
    return {
        "stage": "sample", "label": "sample", "recipe": RECIPE.model_dump(mode="json"), "store": store.url,
        "inputs": {"policy": commit(store, "model", "policy", policy), "prompts": commit(store, "rows", "prompts", prompts)},
        "ref": Ref("rows", "sample", "1" * 16).key, "out": str(out),
        "runtime": Runtime(**{"sample_rows": 1, **runtime}).model_dump(mode="json"),
    }  # fmt: skip


def start(spec: dict[str, Any], path: Path, **env: str) -> subprocess.Popen[str]:
    """`python -m engine.run` on the spec; its events can be read line by line."""
    path.write_text(json.dumps(spec))
    return subprocess.Popen(
        [sys.executable, "-m", "engine.run", str(path)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), **env},
    )  # fmt: skip


def until(process: subprocess.Popen[str], event: str) -> list[str]:
    """The lines up to the first such event, or to the end."""
    found = []
    assert process.stdout is not None
    for line in process.stdout:
        found.append(line)
        if line.startswith(f'{{"event": "{event}"'):
            break
    return found


def ended(process: subprocess.Popen[str]) -> int:
    """Read what is left, and wait for the end."""
    assert process.stdout is not None
    process.stdout.read()
    process.stdout.close()
    return process.wait()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def alone(make_job: Any, policy: Path, prompts: Path) -> dict[str, bytes]:
    """The files of the same stage made by this process, one shard after the other."""
    job = make_job("sample", RECIPE, out="alone", policy=policy, prompts=prompts)
    sample.run(job)
    job.finish()
    return files(job.out)


def test_shards_in_any_order_by_two_replicas_give_the_same_bytes(
    make_job: Any, policy: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two halves of the work are done apart, the later shards first, and put together as they come."""
    wanted = alone(make_job, policy, prompts)

    def apart(job: Any, numbers: list[int]) -> Any:
        for share in (numbers[1::2], numbers[::2]):
            part = make_job("sample", job.recipe, out=f"part-{share[0]}", policy=policy, prompts=prompts)
            part.spec = {"shards": share[::-1]}
            made: list[Any] = []
            monkeypatch.setattr(part, "shard", lambda *told, m=made: m.append(told), raising=False)
            sample.run(part)
            for number, counts, names in made:
                for name in names:
                    (job.out / name).write_bytes((part.out / name).read_bytes())
                yield number, counts

    monkeypatch.setattr(sample.workers, "shards", apart)
    both = make_job("sample", RECIPE, out="both",
                    runtime={"launcher": "deepspeed", "processes": 2}, policy=policy, prompts=prompts)  # fmt: skip
    sample.run(both)
    both.finish()
    assert files(both.out) == wanted


def test_what_all_processes_took_is_counted() -> None:
    done = {"event": "done", "seconds": 9.0, "cpu_seconds": 5.0, "peak_bytes": 70,
            "pace": {"done": 4, "cpu_seconds": 2.0, "seconds": 3.0, "of": 8}}  # fmt: skip
    assert workers.add_workers(done, []) == workers.add_replicas(done, []) == done
    others = [{"cpu_seconds": 3.0, "peak_bytes": 90}, {"cpu_seconds": 2.0, "peak_bytes": 10}]
    found = workers.add_workers(done, others)
    assert (found["cpu_seconds"], found["peak_bytes"], found["seconds"]) == (10.0, 90, 9.0)
    assert found["pace"] == {"done": 4, "cpu_seconds": 4.0, "seconds": 3.0, "of": 8}
    assert [one["cpu_seconds"] for one in found["processes"]] == [5.0, 3.0, 2.0]
    paces: list[Any] = [{"pace": {"done": 6, "cpu_seconds": 12.0}}, {"pace": None}]
    found = workers.add_replicas(done, [{**one, **pace} for one, pace in zip(others, paces)])
    assert found["pace"] == {"done": 4, "cpu_seconds": 8.0, "seconds": 3.0, "of": 8} and found["cpu_seconds"] == 10.0
    assert workers.add_replicas(done, others)["pace"] is None


@pytest.mark.slow
@pytest.mark.slow_short
def test_two_replicas_one_of_them_killed_end_with_the_same_bytes(
    make_job: Any, policy: Path, prompts: Path, tmp_path: Path
) -> None:
    wanted = alone(make_job, policy, prompts)
    store = open_store((tmp_path / "shared").as_uri())
    spec = sample_spec(store, policy, prompts, tmp_path / "first", launcher="deepspeed", processes=2)
    process = start(spec, tmp_path / "spec.json")
    until(process, "saved")
    family = psutil.Process(process.pid).children(recursive=True)
    replicas = [one for one in family if "engine.workers" in one.cmdline()]
    assert len(replicas) == 2
    replicas[1].kill()
    assert ended(process) == -signal.SIGKILL  # so that whoever started it tries again
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    again = {**spec, "out": str(tmp_path / "second")}
    (tmp_path / "second").mkdir()
    process = start(again, tmp_path / "spec.json")
    lines = until(process, "done")
    assert ended(process) == 0
    told = json.loads(lines[-1])
    assert told["cpu_seconds"] == sum(one["cpu_seconds"] for one in told["processes"]) and len(told["processes"]) == 3
    assert any("continues from save point" in line for line in lines)
    assert files(tmp_path / "second") == wanted


@pytest.mark.slow
@pytest.mark.slow_short
def test_workers_end_with_a_stage_that_is_killed(policy: Path, prompts: Path, tmp_path: Path) -> None:
    store = open_store((tmp_path / "shared").as_uri())
    spec = sample_spec(store, policy, prompts, tmp_path / "first", launcher="deepspeed", processes=2)
    process = start(spec, tmp_path / "spec.json")
    until(process, "saved")
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    ended(process)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert family and not alive
