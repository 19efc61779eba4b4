"""What a campaign costs beside its work: `python -m benchmarks.overhead [CONFIG]`, a minute.

Runs a campaign in an empty store with one slot, so that stages come one after the other, and adds up the time in which no stage
was at work (looking up, leases, commits, task runs), the start of Prefect left out. Then the start of a warm stage:
from the request to the end of a child that refuses its spec at once.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tasks.launch import StageFailed, run_stage, stop_all, warm_up

TRIES = 20


def idle_seconds(spans: list[tuple[float, float]], end: float) -> float:
    """Seconds from the first beginning to `end` that no span covers."""
    covered, reached = 0.0, min(begin for begin, _ in spans)
    first = reached
    for begin, finish in sorted(spans):
        covered += max(0.0, finish - max(begin, reached))
        reached = max(reached, finish)
    return end - first - covered


def campaign_overhead(config: str, folder: Path) -> tuple[int, float, float]:
    """Stages, seconds of work, seconds beside the work of one campaign with one slot."""
    store, runtime = folder / "store", folder / "runtime.yaml"
    runtime.write_text("slots: 1\nthreads: 1\n")
    command = [sys.executable, "-m", "cli", "run", config, "--store", store.as_uri(), "--runtime", str(runtime)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"})
    manifests = sorted(store.glob("artifacts/*/*/manifest.json"))
    records = [json.loads(path.read_text())["record"] for path in manifests]
    spans = [(r["began"], r["began"] + r["seconds"]) for r in records]
    end = max(path.stat().st_mtime for path in manifests)
    return len(records), sum(r["seconds"] for r in records), idle_seconds(spans, end)


def warm_starts(folder: Path) -> list[float]:
    """Seconds of a stage that ends at once, the warm server running."""
    spec = {"stage": "ingest", "label": "start", "recipe": {}, "inputs": {}, "store": (folder / "none").as_uri(),
            "ref": "rows/none-0", "out": str(folder), "runtime": {}, "save": False}  # fmt: skip
    warm_up()
    taken = []
    for _ in range(TRIES + 1):
        began = time.monotonic()
        try:
            run_stage(spec, log=folder / "log", listen=lambda event: None, stop=lambda: None, timeout=60)
        except StageFailed:
            taken.append(time.monotonic() - began)
    stop_all()
    return taken[1:]  # the first waited for the imports


def main() -> None:
    config = sys.argv[1] if len(sys.argv) > 1 else "micro"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stages, work, idle = campaign_overhead(config, folder)
        starts = warm_starts(folder)
    print(
        f"{config}: {stages} stages, {work:.1f} s of work, {idle:.1f} s beside it: {idle / stages * 60:.1f} s per 60 stages"
    )
    print(f"a warm stage starts in {statistics.median(starts):.3f} s (median of {TRIES}; worst {max(starts):.3f})")


if __name__ == "__main__":
    main()
