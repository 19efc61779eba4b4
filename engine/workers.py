"""Several processes for one stage: the first does the stage's work, all of them share its optimizer steps (engine/zero.py)."""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("pretrain", "continuing", "train", "reward", "online")
_MARK = "ROUNDHOUSE_WORKER"


def wanted(spec: dict[str, Any]) -> bool:
    """Whether the stage is to be shared and this is not one of its processes already."""
    return spec["runtime"].get("launcher") == "deepspeed" and spec["stage"] in STAGES and _MARK not in os.environ


def launch(spec: dict[str, Any]) -> int:
    """Run the stage in `runtime.processes` processes; when one fails the others are ended. Returns the exit code."""
    runtime = spec["runtime"]
    count = int(runtime.get("processes", 1))
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        path = Path(scratch) / "spec.json"
        path.write_text(json.dumps(spec))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        shared = {
            **os.environ,
            _MARK: "1",
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        if runtime.get("device", "cpu") == "cpu":
            shared["DS_ACCELERATOR"] = "cpu"
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "engine.workers", str(path)],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else sys.stderr,
            )
            for rank in range(count)
        ]
        return _wait(workers)


def _wait(workers: list[subprocess.Popen[bytes]]) -> int:
    try:
        while True:
            codes = [worker.poll() for worker in workers]
            if failed := [code for code in codes if code]:
                return abs(failed[0])
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.05)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


def work(spec: dict[str, Any]) -> int:
    """What one of the processes does: the first one the stage, the others their share of its steps."""
    import torch

    from engine import run
    from engine.zero import WorkerDone

    rank = int(os.environ["RANK"])
    if spec["runtime"].get("device") == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if rank == 0:
        return run.main(spec)
    with tempfile.TemporaryDirectory() as out:
        job = run.open_job({**spec, "out": out})
        run.settle(job.runtime, int(getattr(job.recipe, "seed", 0)))
        try:
            importlib.import_module(f"engine.{job.stage}").run(job)
        except WorkerDone:
            return 0
    raise AssertionError("a stage that shares its steps ends in its first process only")


if __name__ == "__main__":
    code = work(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.flush()
    os._exit(code)  # process groups of other libraries must not hold the process back
