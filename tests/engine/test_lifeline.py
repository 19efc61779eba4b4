"""A command on a lifeline ends with its starter, however that died, and takes along what it has started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine import lifeline

FAMILY = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
STARTER = f"""
import os, sys, time
from engine import lifeline
process = lifeline.start([sys.executable, "-c", {FAMILY!r}], output=1, env=os.environ)
time.sleep(600)
"""


def gone(found: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(found, timeout=20)
    return not alive


def family(of: psutil.Process, members: int) -> list[psutil.Process]:
    """A process's descendants, as soon as there are so many of them."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if len(found := of.children(recursive=True)) >= members:
            return found
        time.sleep(0.05)
    raise AssertionError("the command did not start")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_starter(sign: signal.Signals) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=Path(lifeline.__file__).parents[1], stdout=subprocess.DEVNULL
    )
    found = family(psutil.Process(starter.pid), 3)  # the lifeline, the command, and what that started
    os.kill(starter.pid, sign)
    starter.wait()
    assert gone(found)


def test_it_ends_when_it_is_told_to_and_says_how_it_ended_otherwise() -> None:
    process = lifeline.start([sys.executable, "-c", FAMILY], output=subprocess.DEVNULL, env=os.environ)
    line = psutil.Process(process.pid)
    found = [line, *family(line, 2)]  # not this process's: servers of other tests are among those
    lifeline.end(process)
    assert gone(found)
    other = lifeline.start([sys.executable, "-c", "raise SystemExit(3)"], output=subprocess.DEVNULL, env=os.environ)
    assert other.wait() == 3
    lifeline.end(other)
