"""Where a run's time goes: `python -m benchmarks.profile CONFIG [--store URL] [--replay LABEL ..]`.

First a table of a finished (or half finished) campaign by kind of stage, from the stages' own records: how many, processor
seconds, their share, of them in training steps. With `--replay`, stages of it are done again under cProfile into a scratch
folder, and their time is shown by part: loading code, the model (torch), reading and writing data, storage, the world's
judge and texts, Python of our own. A profiled stage is slower by what the profiler costs, most in Python of our own.
"""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

from cli.main import planned
from engine import forkserver
from tasks import Artifact

PARTS = {
    "model": (
        "torch/",
        "transformers/",
        "peft/",
        "<built-in method torch",
        "torch._C",
        "'torch",
        "engine/decoders",
        "engine/caches",
    ),
    "data": (
        "pyarrow",
        "tokenizers",
        "datasets/",
        "storage/rows",
        "engine/tables",
        "engine/template",
        "jinja2",
        "json/",
    ),
    "storage": ("storage/", "hashlib", "_hashlib", "posix.", "io.open", "fsync", "_io.", "shutil", "pathlib"),
    "world": ("/world/",),
    "import": ("importlib", "<frozen", "marshal"),
}
SHOWN = 12  # functions of a stage


def by_kind(artifacts: list[Artifact]) -> str:
    """Processor seconds by kind of stage."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for artifact in artifacts:
        if (made := artifact.made()) is not None:
            found[artifact.stage.work].append(made.manifest.record)
    cpu = {work: sum(float(r["cpu_seconds"]) for r in records) for work, records in found.items()}
    total = sum(cpu.values())
    lines = ["| kind of stage | stages | CPU seconds | share | peak memory |", "|---|---|---|---|---|"]
    for work in sorted(cpu, key=lambda w: -cpu[w]):
        peak = max(int(r["peak_bytes"]) for r in found[work]) / 2**20
        lines.append(f"| {work} | {len(found[work])} | {cpu[work]:.1f} | {cpu[work] / total:.1%} | {peak:.0f} MiB |")
    return "\n".join([*lines, f"| all | {sum(map(len, found.values()))} | {total:.1f} | | |"])


def replay(artifact: Artifact, store: str, runtime: Any) -> cProfile.Profile:
    """Do a stage's work again under the profiler, its result thrown away."""
    import engine.run

    with tempfile.TemporaryDirectory() as out:
        spec = {
            "stage": artifact.stage.work, "label": artifact.label, "recipe": artifact.stage.recipe.model_dump(mode="json"),
            "inputs": artifact.stage.input_keys(), "store": store, "ref": artifact.ref.key, "out": out, "save": False,
            "runtime": runtime.model_dump(mode="json"),
        }  # fmt: skip
        profile = cProfile.Profile(time.process_time)  # other work on the machine does not count
        profile.enable()
        code = engine.run.main(spec)
        profile.disable()
    assert code == 0, f"{artifact.label} failed"
    return profile


def by_part(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds by part, each function's own time."""
    found: dict[str, float] = defaultdict(float)
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        text = f"{file} {name}".replace("\\", "/")
        part = next((part for part, marks in PARTS.items() if any(mark in text for mark in marks)), None)
        found[part or ("ours" if "/engine/" in text or "/methods/" in text else "other Python")] += own
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="tiny")
    parser.add_argument("--store")
    parser.add_argument("--replay", nargs="*", default=[])
    parser.add_argument(
        "--functions", action="store_true", help="also the functions that took longest, with what they call"
    )
    options = parser.parse_args()
    run = planned(options.config, None, options.store, None)
    print(by_kind(list(run.artifacts.values())), flush=True)
    if options.replay:
        forkserver.preload()
    for label in options.replay:
        profile = replay(run.artifacts[label], run.store.url, run.runtime)
        parts = by_part(profile)
        total = sum(parts.values())
        sys.stdout.write(
            f"\n{label}: {total:.1f} s; " + ", ".join(f"{k} {v / total:.0%}" for k, v in parts.items()) + "\n"
        )
        if options.functions:
            pstats.Stats(profile, stream=sys.stdout).sort_stats("cumulative").print_stats(
                r"/(engine|world|storage|methods)/", 4 * SHOWN
            )
            pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(SHOWN)
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
