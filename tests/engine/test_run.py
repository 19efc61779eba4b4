"""engine.run: how a stage's process is set up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource, torch
from configs.runtime import Runtime
from engine.run import settle
if {settled}:
    settle(Runtime(threads=1), seed=0)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(12_000_000).fill_(1)
began = faults()
for _ in range(10):
    torch.empty(12_000_000).fill_(1)  # 48 MB: more than glibc keeps by itself
print(faults() - began, torch.utils.deterministic.fill_uninitialized_memory)
"""


def told(settled: bool, **env: str) -> tuple[int, str]:
    """Pages that ten tensors faulted in, and whether new tensors are filled."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(settled=settled)], cwd=ROOT, text=True, capture_output=True, check=True,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip
    faults, filled = done.stdout.split()
    return int(faults), filled


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept_for_what_comes_next() -> None:
    without, _ = told(settled=False)
    kept, filled = told(settled=True)
    assert without > 100_000 and kept < without / 2  # a small object in the hole moves the next tensor to new pages
    assert filled == "False"
    own, _ = told(settled=True, MALLOC_TRIM_THRESHOLD_="1000000")  # whoever sets it himself has his way
    assert own > without / 2
    other, _ = told(settled=True, MALLOC_ARENA_MAX="2")
    assert other < without / 2
