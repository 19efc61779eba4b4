"""Where one of a stage's processes runs: here. engine/cluster.py has the same on a Ray cluster."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

COMMAND = ("-m", "engine.workers")  # and a file with the spec


class Died(Exception):
    """A process was killed, or the machine it ran on is gone: worth trying again, from the last save point."""


class Failed(Exception):
    """A process ended with an exit code of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Place(Protocol):
    """Room for one process, which ends with whoever asked for it."""

    name: str  # for messages
    grace: float  # seconds within which a loss elsewhere shows here

    def address(self) -> tuple[str, int]:
        """A host name that the other places reach, and a port that is free there."""

    def device(self, rank: int) -> int:
        """Which of the devices that a process there sees is the one of this rank."""

    def visible(self, number: int, devices: int) -> dict[str, str]:
        """What to set so that the number-th process there sees its own devices only."""

    def start(self, spec: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Start `engine.workers` on the spec; `env` comes on top of the environment there."""

    def said(self) -> Iterator[str | int]:
        """The lines that the process prints, and at last its exit code; below 0: it was killed."""

    def bring(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """Copy these files (None: all) that the process wrote to its `out` into a local folder, if they are not there.

        Raises:
            Died: the place is gone.
        """

    def end(self) -> None:
        """Kill the process if it runs."""


class Process:
    """A started worker: its own spec file, its lifeline on standard input, its output line by line."""

    def __init__(self, spec: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        path = Path(self.scratch.name) / "spec.json"
        path.write_text(json.dumps(spec))
        if spec["runtime"].get("device", "cpu") == "cpu":
            env = {"DS_ACCELERATOR": "cpu", **env}
        self.child = subprocess.Popen(
            [sys.executable, *COMMAND, str(path)], env={**os.environ, **env}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip

    def said(self) -> Iterator[str | int]:
        """See Place."""
        assert self.child.stdout is not None
        # No `yield from`: Ray sends into the generator, and a file has nothing to take it.
        for line in self.child.stdout:  # noqa: UP028
            yield line
        yield self.child.wait()

    def end(self) -> None:
        """See Place."""
        self.child.kill()
        self.child.wait()
        self.scratch.cleanup()


class Local:
    """A process on this machine; its `out` is the spec's."""

    name, grace = "on this machine", 5.0

    def __init__(self) -> None:
        self.process: Process | None = None
        self.out = Path()

    def address(self) -> tuple[str, int]:
        """See Place."""
        return "127.0.0.1", free_port("127.0.0.1")

    def device(self, rank: int) -> int:
        """See Place."""
        return rank

    def visible(self, number: int, devices: int) -> dict[str, str]:
        """See Place."""
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = given.split(",") if given else [str(i) for i in range((number + 1) * devices)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(every[number * devices : (number + 1) * devices])}

    def start(self, spec: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """See Place."""
        self.process, self.out = Process(spec, env), Path(spec["out"])

    def said(self) -> Iterator[str | int]:
        """See Place."""
        assert self.process is not None
        return self.process.said()

    def bring(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """See Place."""
        if self.out != folder:
            for name in names or [path.name for path in self.out.iterdir() if path.is_file()]:
                shutil.copyfile(self.out / name, folder / name)

    def end(self) -> None:
        """See Place."""
        if self.process is not None:
            self.process.end()


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
