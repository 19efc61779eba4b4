"""Start a stage's work in a process of its own, and never leave one behind.

The work is forked from a warm server (`engine.forkserver`), which this process starts at the first stage. Both die with
this process, however it dies: the server by its socket, each stage by its lifeline pipe.
"""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from storage import redact
from tasks import memory

ROOT = Path(__file__).resolve().parent.parent
Event = dict[str, Any]  # JSON lines of engine.job: event name plus its values


class StageFailed(RuntimeError):
    """A stage's work ended without a result; the message is one line."""


class StageDied(StageFailed):
    """A stage's process, or the server it was forked from, was killed: worth trying again, in a new process."""


class OutOfMemory(StageFailed):
    """A stage needed more memory than there is; the message says which micro-batch would fit."""


class StageStopped(StageFailed):
    """A stage's work was stopped from this side."""


@dataclass
class _Running:
    lifeline: int  # our end; closing it ends the stage
    ended: threading.Event
    status: int | None = None
    pid: int | None = None


class Process(Protocol):
    """What the warm server's process can be asked."""

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; subprocess.TimeoutExpired after `timeout` seconds."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def _begin(theirs: socket.socket) -> Process:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.forkserver", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=os.getcwd(),
    )


class _Server:
    """The one warm server of this process."""

    def __init__(self, begin: Callable[[socket.socket], Process] | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.process = (begin or _begin)(theirs)
        theirs.close()
        self.socket = ours
        self.running: dict[int, _Running] = {}
        self.lock = threading.Lock()
        self.next_id = 0
        threading.Thread(target=self._listen, daemon=True, name="stage-exits").start()

    def start(self, spec: Mapping[str, Any]) -> tuple[_Running, int]:
        """Ask for a stage; returns it and the descriptor its output comes from."""
        read_end, output = os.pipe()
        lifeline_end, lifeline = os.pipe()
        running = _Running(lifeline, threading.Event())
        with self.lock:
            self.next_id += 1
            self.running[self.next_id] = running
            line = json.dumps({"id": self.next_id, "spec": spec}).encode() + b"\n"
            try:
                sent = socket.send_fds(self.socket, [line[:1]], [output, lifeline_end])
                self.socket.sendall(line[sent:])
            except OSError as error:
                raise StageDied(f"the stage server is gone ({error}); run again to start it anew") from error
            finally:
                os.close(output)
                os.close(lifeline_end)
        return running, read_end

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self.socket.makefile("r") as lines:
            for line in lines:
                message = json.loads(line)
                running = self.running.get(message["id"])
                if running is None:
                    continue
                running.pid = message.get("pid", running.pid)
                if "status" in message:
                    running.status = message["status"]
                    self.running.pop(message["id"])
                    running.ended.set()
        for running in list(self.running.values()):  # the server died: so do its stages, by their lifelines
            _let_go(running)
            running.ended.set()

    def close(self) -> None:
        for running in list(self.running.values()):
            _let_go(running)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


_server: _Server | None = None
_server_lock = threading.Lock()


def use(begin: Callable[[socket.socket], Process]) -> None:
    """Start the warm server in a way of the caller's, such as a fork of a process that has everything loaded."""
    global _server
    with _server_lock:
        assert _server is None, "the warm server runs already"
        _server = _Server(begin)


def warm_up() -> None:
    """Start the warm server if it is not there; returns at once, the imports go on beside us."""
    global _server
    with _server_lock:
        if _server is None or _server.process.poll() is not None:
            _server = _Server()


def stop_all() -> None:
    """End every running stage and the server; for cancellation and the end of the process."""
    global _server
    with _server_lock:
        if _server is not None:
            _server.close()
            _server = None


atexit.register(stop_all)


def _let_go(running: _Running) -> None:
    descriptor, running.lifeline = running.lifeline, -1
    if descriptor >= 0:
        os.close(descriptor)


def run_stage(
    spec: Mapping[str, Any],
    *,
    log: Path,
    listen: Callable[[Event], None],
    stop: Callable[[], str | None],
    timeout: float,
) -> Event:
    """Do the work of `spec` in a child process and return its `done` event.

    Args:
        log: file that receives every line the child prints, without secrets.
        listen: called with each event, in order.
        stop: polled twice a second; a text ends the child with that reason.
        timeout: seconds.

    Raises:
        StageFailed: the work failed, or its process died; one line says how.
        StageStopped: `stop` gave a reason, or the time was up.
    """
    warm_up()
    assert _server is not None
    running, output = _server.start(spec)
    reasons: list[str] = []
    watcher = threading.Thread(target=_watch, args=(running, stop, timeout, reasons), daemon=True)
    watcher.start()
    last: Event = {}
    try:
        with os.fdopen(output, "r", errors="replace") as lines, log.open("a") as kept:
            for line in map(redact, lines):
                kept.write(line)
                event = _as_event(line)
                if event.get("event") in ("done", "failed"):
                    last = event
                else:
                    listen(event)
        running.ended.wait()
    finally:
        _let_go(running)
    return _outcome(spec, running, last, reasons, log)


def _outcome(spec: Mapping[str, Any], running: _Running, last: Event, reasons: list[str], log: Path) -> Event:
    if reasons:
        raise StageStopped(f"{spec['label']}: {reasons[0]}")
    if last.get("event") == "done" and running.status == 0:
        return last
    if last.get("event") == "failed":
        if memory.ran_out(str(last.get("kind")), last["message"]):
            raise OutOfMemory(f"{spec['label']}: {memory.advice(spec, last['message'])}")
        raise StageFailed(f"{spec['label']}: {last['message']}")
    status = running.status
    how = "the stage server died" if status is None else f"signal {-status}" if status < 0 else f"exit code {status}"
    hint = f"; often the out-of-memory killer, if so: {memory.advice(spec, '')}" if status == -9 else ""
    kind = StageDied if status is None or status < 0 else StageFailed
    raise kind(f"{spec['label']}: its process ended by {how}{hint}; its output is in {log}")


def _watch(running: _Running, stop: Callable[[], str | None], timeout: float, reasons: list[str]) -> None:
    waited = 0.0
    while not running.ended.wait(0.5):
        waited += 0.5
        reason = stop() or (f"took longer than runtime.timeout_seconds = {timeout:g}" if waited > timeout else None)
        if reason:
            reasons.append(reason)
            _let_go(running)
            return


def _as_event(line: str) -> Event:
    if line.startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                return event
    return {"event": "output", "text": line.rstrip("\n")}
