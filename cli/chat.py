"""Talk to a version in a process of its own, so that this one needs no torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def chat_with(folder: Path, temperature: float = 0.8, seed: int = 0) -> int:
    """Hand the terminal (or whatever stdin is) to the model in `folder`; returns the exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [
        sys.executable,
        "-P",
        "-m",
        "engine.chat",
        str(folder),
        "--temperature",
        str(temperature),
        "--seed",
        str(seed),
    ]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the conversation: it ends itself
    try:
        return subprocess.run(command, env=environment, preexec_fn=_hear_interrupts).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
