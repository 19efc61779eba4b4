"""engine.run: how a stage's process is set up."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import run

ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource, torch
from configs.runtime import Runtime
from engine.run import settle

def faults():
    torch.empty(12_000_000).fill_(1)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(12_000_000).fill_(1)  # 48 MB: more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began

before = faults()
settle(Runtime(threads=1), seed=0)
print(before, faults(), torch.utils.deterministic.fill_uninitialized_memory)
"""
glibc = pytest.mark.skipif(run.platform.libc_ver()[0] != "glibc", reason="of glibc")


@glibc
def test_freed_memory_is_kept_for_what_comes_next() -> None:
    """Pages that ten tensors fault in."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, text=True, capture_output=True, check=True,
        env={**clean, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    before, kept, filled = done.stdout.split()
    assert int(before) > 100_000  # all of them
    assert int(kept) < int(before) / 2  # a small object in the hole moves the next tensor to new pages
    assert filled == "False"


@glibc
@pytest.mark.parametrize(
    ("env", "taken", "calls"),
    [
        ({}, 1 << 30, [(-3, 1 << 30), (-1, (1 << 31) - 1)]),
        ({}, 1 << 25, [(-3, 1 << 30), (-3, 1 << 25), (-1, (1 << 31) - 1)]),
        ({}, 0, [(-3, 1 << 30), (-3, 1 << 25)]),
        ({"MALLOC_ARENA_MAX": "2"}, 1 << 30, [(-3, 1 << 30), (-1, (1 << 31) - 1)]),
        ({"MALLOC_TRIM_THRESHOLD_": "1000"}, 1 << 30, []),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000"}, 1 << 30, []),
    ],
)
def test_whoever_sets_the_thresholds_has_his_way(
    env: dict[str, str], taken: int, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """taken: the largest threshold that the library accepts."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        found.append((parameter, value))
        return int(parameter == -1 or value <= taken)

    monkeypatch.setattr(run.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    run.keep_memory()
    assert found == calls
