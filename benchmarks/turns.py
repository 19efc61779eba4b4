"""Sides of a comparison in processes of their own that compute in turn, step by step: what disturbs one disturbs all."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Turns:
    """In a side's process: `begin` at the start of every step waits for its turn and measures the step before."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.seconds: list[float] = []  # of processor time, of every step, or what else the clock counts
        self._clock, self._began = clock, -1.0

    def begin(self, *_: Any) -> None:
        """A step begins."""
        self.end()
        print("\nTURN", flush=True)
        sys.stdin.readline()
        self._began = self._clock()

    def end(self) -> None:
        """A step has ended."""
        if self._began >= 0:
            self.seconds.append(self._clock() - self._began)
        self._began = -1.0


def products() -> Callable[[], float]:
    """A clock that counts the GFLOP of matrix products, from now on in this thread (attention's operator is left out)."""
    from torch.utils.flop_counter import FlopCounterMode

    mode = FlopCounterMode(display=False)
    mode.__enter__()
    return lambda: mode.get_total_flops() / 1e9


def answer(result: Mapping[str, Any]) -> None:
    """A side's last word."""
    print("\nRESULT " + json.dumps(result), flush=True)


def in_turn(commands: Mapping[str, Sequence[str]], threads: int) -> dict[str, dict[str, Any]]:
    """What each side answers. One of them computes at a time, also while they start."""
    shared = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    sides: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            for name, command in commands.items():
                sides[name] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                    env={**os.environ, **shared},
                )  # fmt: skip
                _hear(name, sides[name], errors)
            while len(found) < len(sides):
                for name in [name for name in sides if name not in found]:
                    print("go", file=sides[name].stdin, flush=True)
                    if said := _hear(name, sides[name], errors):
                        found[name] = json.loads(said)
        finally:
            for process in sides.values():
                process.kill()
                process.wait()
    return found


def _hear(name: str, process: subprocess.Popen[str], errors: Any) -> str:
    """Wait until a side's turn is over; returns its answer if it is at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        if line == "TURN\n":
            return ""
        if line.startswith("RESULT "):
            return line.removeprefix("RESULT ")
    errors.seek(0)
    sys.exit(f"{name} failed:\n{errors.read()[-3000:]}")


def blocks(seconds: Sequence[float], warm: int, repeats: int) -> list[float]:
    """The steps after the first `warm` ones as so many equal runs: seconds of each."""
    size = (len(seconds) - warm) // repeats
    return [sum(seconds[warm + i * size : warm + (i + 1) * size]) for i in range(repeats)]


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Median and spread of how much longer they took, as two cells of a table."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f}"


def machine(threads: int) -> str:
    """What a table was measured on."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.machine()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{models[0]}, {versions}, {threads} thread(s)"
