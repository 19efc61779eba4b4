"""Do one stage's work: a JSON spec in, files and an exit code out. `python -m engine.run SPEC` replays any stage.

Spec: stage, label, recipe, inputs {role: key | [keys]}, store (URL), ref (key of the result), out (folder), runtime.
The last line on stdout is {"event": "done", "summary": ...} or {"event": "failed", "message": ...}.
"""

import ctypes
import importlib
import json
import os
import platform
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from configs import continuing, deciding, gates, gathering, recipes
from configs.certify import Certify, Leakage
from configs.runtime import Runtime
from engine import workers
from engine.job import Job
from storage import Ref, SavePoints, Store, open_store
from storage.errors import one_line

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from malloc.h

RECIPES = {
    "ingest": recipes.Ingest,
    "gather": gathering.Gather,
    "pretrain": recipes.Pretrain,
    "adopt": recipes.Adopt,
    "train": recipes.Train,
    "annotate": recipes.Annotate,
    "reward": recipes.Reward,
    "certify": Certify,
    "leakage": Leakage,
    "probe": recipes.Probe,
    "sample": recipes.Sample,
    "score": recipes.Score,
    "select": recipes.Select,
    "online": recipes.Online,
    "evaluate": recipes.Evaluate,
    "gate": gates.Verdict,
    "matrix": gates.Matrix,
    "compare": recipes.Compare,
    "decide": deciding.Decide,
    "pack": continuing.Pack,
    "continuing": continuing.Continue,
    "measure": continuing.Measure,
    "transplant": continuing.Transplant,
    "rank": recipes.Rank,
}


def open_job(spec: dict[str, Any]) -> Job:
    """Fetch and verify the inputs, and put together what the stage sees."""
    store: Store = open_store(spec["store"])

    def local(keys: str | list[str]) -> Path | list[Path]:
        if isinstance(keys, str):
            return store.fetch(Ref.parse(keys))
        return [store.fetch(Ref.parse(key)) for key in keys]

    return Job(
        stage=spec["stage"],
        recipe=RECIPES[spec["stage"]].model_validate(spec["recipe"]),
        inputs={role: local(keys) for role, keys in spec["inputs"].items()},
        out=Path(spec["out"]),
        runtime=Runtime.model_validate(spec["runtime"]),
        saves=_saves(store, spec) if spec.get("save", True) else None,
        spec=spec,
    )


def _saves(store: Store, spec: dict[str, Any]) -> SavePoints:
    """The stage's save points; only while the parent's lease holds, if there is a parent."""
    holder = store.holder(spec["ref"], spec["epoch"]) if "epoch" in spec else None
    return store.save_points(Ref.parse(spec["ref"]), holder)


def settle(runtime: Runtime, seed: int) -> None:
    """Make this process's arithmetic repeatable (threads, seed, deterministic kernels) and its memory cheap."""
    import torch

    keep_memory()
    torch.set_num_threads(runtime.threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # NaN into every new tensor: 4 % of a PPO iteration
    if runtime.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def keep_memory() -> None:
    """Let the C library keep what is freed for what is needed next.

    Else tensors of megabytes are mapped, filled with zeros page by page and unmapped at every operator: a tenth of a PPO
    iteration on a CPU. Does nothing where the library is not glibc, or where the environment sets these thresholds.
    """
    own = [name for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_") if name in os.environ]
    if platform.libc_ver()[0] != "glibc" or own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    library = ctypes.CDLL(None)
    # Old versions take 32 MiB at most; the second threshold without the first would make it worse.
    if library.mallopt(_MMAP_THRESHOLD, 1 << 30) or library.mallopt(_MMAP_THRESHOLD, 1 << 25):
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def main(spec: dict[str, Any]) -> int:
    """Run the spec; returns the exit code. Never lets a traceback be the message."""
    if workers.wanted(spec):
        return workers.launch(spec)
    began, cpu = time.monotonic(), time.process_time()
    job: Job | None = None
    try:
        job = open_job(spec)
        settle(job.runtime, int(getattr(job.recipe, "seed", 0)))
        summary = importlib.import_module(f"engine.{job.stage}").run(job)
        job.finish()
        taken = measure_usage(job.runtime.device, cpu)
        done = {"event": "done", "summary": summary, "pace": job.pace(), "seconds": time.monotonic() - began, **taken}
        say(**workers.add_replicas(done, job.elsewhere))
        return 0
    except BaseException as error:
        traceback.print_exc()
        _close(job)
        say(
            event="failed",
            kind=type(error).__name__,
            message=one_line(error)[:2000],
        )
        return 1


def measure_usage(device: str, since: float) -> dict[str, float]:
    """Processor seconds of this process since its clock was at `since`, and the most memory that it has held: on a GPU the
    device's, as `roundhouse plan` forecasts it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        import torch  # here: a stage's process starts sooner without it

        peak = int(torch.cuda.max_memory_allocated())
    return {"cpu_seconds": time.process_time() - since, "peak_bytes": peak}


def _close(job: Job | None) -> None:
    """Let a failed stage's last save point be stored: the next run goes on from it."""
    try:
        if job is not None:
            job.close()
    except BaseException:
        traceback.print_exc()  # the first failure is the one to tell


def say(**event: Any) -> None:
    """One event line to whoever started this process."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
