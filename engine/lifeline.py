"""Run a command that cannot outlive its starter: `python engine/lifeline.py COMMAND..`, standard library only.

The starter holds the other end of this process's standard input. When that closes, however the starter died, the command and
all that it started are killed; when the command ends by itself, so does what it has left behind. Exit code: the command's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def start(command: Sequence[str], *, output: int | IO[bytes], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command on a lifeline; closing the process's `stdin` ends it. Its output and errors go to `output`."""
    held = [sys.executable, "-P", str(Path(__file__)), *command]
    return subprocess.Popen(
        held, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End what `start` has started, and wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def main() -> int:
    """Run the command in a session of its own until it ends or our standard input closes."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_watch, args=(child.pid,), daemon=True).start()
    code = child.wait()
    _kill(child.pid)
    return code if code >= 0 else 128 - code


def _watch(group: int) -> None:
    while os.read(0, 4096):
        pass
    _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
