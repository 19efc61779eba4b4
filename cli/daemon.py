"""Background processes that outlive the command that started them, and are stopped by the one that asks.

A process is remembered by a small JSON file: its pid, when that pid started, and a word of its command line. A pid
alone is not enough, because after a reboot or a wrap-around the same number belongs to somebody else.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_CLOCK_SLACK = 5.0  # seconds: psutil derives a start time from the boot time, which moves when the clock is set
_LOG_BYTES = 10_000_000  # a longer log is put aside at the next start
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True)
class Daemon:
    """A process that we started: `pid`, its start in Unix seconds, a `mark` from its command line, its log file."""

    name: str
    pid: int
    started: float
    mark: str
    log: str


def start(state: Path, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path, mark: str) -> Daemon:
    """Start `command` in a session of its own, its output appended to `<state>/<name>.log`, and remember it.

    SIGINT is put back to its default first: a shell makes its background jobs ignore it, the child inherits that, and
    a Prefect worker (which turns SIGTERM into SIGINT to itself) could then never be stopped.
    """
    log = state / f"{name}.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        os.replace(log, log.with_suffix(".log.1"))
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**env, "PWD": str(cwd)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_restore_signals,
        )
    child.returncode = 0  # it outlives us on purpose: no ResourceWarning when the handle goes
    daemon = Daemon(name, child.pid, psutil.Process(child.pid).create_time(), mark, str(log))
    draft = state / f".{name}.json.{os.getpid()}"
    draft.write_text(json.dumps(asdict(daemon)) + "\n")
    os.replace(draft, _record(state, name))
    return daemon


def find(state: Path, name: str) -> Daemon | None:
    """The daemon `name` if it is running and is the one that we started; a stale record is removed."""
    record = _record(state, name)
    try:
        daemon = Daemon(**json.loads(record.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        record.unlink(missing_ok=True)
        return None
    if is_alive(daemon):
        return daemon
    record.unlink(missing_ok=True)
    return None


def is_alive(daemon: Daemon) -> bool:
    """Whether that very process still runs: same pid, same start time, same program."""
    try:
        process = psutil.Process(daemon.pid)
        return (
            process.status() not in _DEAD
            and abs(process.create_time() - daemon.started) < _CLOCK_SLACK
            and any(daemon.mark in word for word in process.cmdline())
        )
    except psutil.Error:
        return False


def stop(state: Path, name: str, grace: float = 15.0) -> list[int]:
    """Stop the daemon `name` and everything below it: SIGTERM, then after `grace` seconds SIGKILL to what is left.

    Returns the pids that had to be killed. Nothing happens to a process that we did not start.
    """
    daemon = find(state, name)
    if daemon is None:
        return []
    stubborn: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(daemon.pid)
        family = [top, *top.children(recursive=True)]
        top.send_signal(signal.SIGTERM)
        _wait_gone(family, grace)
        # Flow processes start stages in sessions of their own while we wait: look once more before killing.
        family += [child for parent in family for child in _children(parent) if child not in family]
        stubborn = [process for process in family if _runs(process)]
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _wait_gone(stubborn, 5.0)
    _record(state, name).unlink(missing_ok=True)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(daemon.pid, os.WNOHANG)  # when we are its parent, do not leave a zombie
    return [process.pid for process in stubborn]


def tail(daemon: Daemon, lines: int = 15) -> str:
    """The last lines of the daemon's log, for an error message."""
    with contextlib.suppress(OSError):
        return "\n".join(Path(daemon.log).read_text(errors="replace").splitlines()[-lines:])
    return ""


def _record(state: Path, name: str) -> Path:
    return state / f"{name}.json"


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in _DEAD
    except psutil.Error:
        return False


def _wait_gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)


def _restore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
