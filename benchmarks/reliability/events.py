"""Where a process can be killed: its file operations under a folder, counted in every process that it forks."""

import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

# Python announces file operations to audit hooks; fsync it does not, so that is wrapped.
EVENTS = {
    "open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "os.truncate",
}  # fmt: skip


def in_child(work: Callable[[], object], on_start: Callable[[int], object] | None = None) -> int:
    """Run `work` in a forked process; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as err:
            print(f"child: {type(err).__name__}: {err}", file=sys.stderr)
        finally:
            os._exit(code)
    if on_start is not None:
        on_start(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Counter:
    """Numbers events over all forks, by role, and ends the process in which the chosen one is about to happen.

    `fatal`: (role, number), numbers from 1; None only counts. `note` hears role, what and path of each event.
    """

    def __init__(self, fatal: tuple[str, int] | None, note: Callable[[str, str, str], None] | None = None) -> None:
        self._cells = {role: mmap.mmap(-1, 8) for role in ("parent", "child", "step")}
        self._fatal, self._note = fatal, note

    def happened(self, role: str, what: str, path: str = "") -> None:
        """One more event; this may be the end of the process."""
        cell = self._cells[role]
        (seen,) = struct.unpack("q", cell[:8])
        cell[:8] = struct.pack("q", seen + 1)
        if self._note is not None:
            self._note(role, what, path)
        if self._fatal == (role, seen + 1):
            os.kill(os.getpid(), signal.SIGKILL)


def watch(root: Path, happened: Callable[[str, str], None]) -> None:
    """From now on tell `happened(what, path)` before each file operation under `root`, in this process and its forks."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in EVENTS and isinstance(args[0], str | os.PathLike):
            path = str(args[0])
            if path == str(root) or path.startswith(f"{root}/"):
                happened(event, path)

    real = os.fsync

    def fsync(handle: int) -> None:
        happened("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
