"""A warm parent: torch and transformers loaded once, one fork a stage (0.1 s instead of 5 s).

`python -m engine.forkserver FD`: FD is a Unix socket to the process that wants stages run. A request is one JSON line
{"id", "spec"} with two descriptors: where the stage's output goes, and its lifeline, a pipe whose other end only the
asker holds. Answers: {"id", "pid"} at the start, {"id", "status"} at the end. A stage lives in a session of its own and
kills its group when the lifeline closes, however the asker died; the server ends when its socket closes.
"""

import array
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from typing import Any


def preload() -> None:
    """Import what every stage needs. Must start no thread and open no file system, for the sake of the forks.

    What is there then is left out of garbage collections: one in a fork would walk, and so copy, every page of it (0.5 s).
    """
    import datasets  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama  # noqa: F401

    import engine.run  # noqa: F401

    gc.freeze()


def serve(connection: socket.socket) -> None:
    """Fork a stage for each request until the connection closes."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # pid -> request id
    buffer = b""
    descriptors: list[int] = []
    while True:
        ready, _, _ = select.select([connection, wake_read], [], [], 1.0)
        if wake_read in ready:
            os.read(wake_read, 4096)
        _reap(connection, running)
        if connection not in ready:
            continue
        data, received = _receive(connection)
        if not data:
            return
        buffer += data
        descriptors += received
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            request = json.loads(line)
            output, lifeline, descriptors = descriptors[0], descriptors[1], descriptors[2:]
            pid = os.fork()
            if pid == 0:
                os._exit(
                    _become_stage(
                        request["spec"], output, lifeline, [connection.fileno(), wake_read, wake_write, *descriptors]
                    )
                )
            os.close(output)
            os.close(lifeline)
            running[pid] = request["id"]
            _answer(connection, id=request["id"], pid=pid)


def _become_stage(spec: dict[str, Any], output: int, lifeline: int, inherited: list[int]) -> int:
    """In the fork: own session, own output, lifeline watched, then the work."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in inherited:
        os.close(descriptor)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    code = 1
    try:
        import engine.run

        code = engine.run.main(spec)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _die_with(lifeline: int) -> None:
    os.read(lifeline, 1)  # blocks until the asker lets go of its end or dies
    os.killpg(0, signal.SIGKILL)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    numbers = array.array("i")
    try:
        data, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_LEN(16 * numbers.itemsize))
    except ConnectionError:
        return b"", []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
    return data, list(numbers)


def _reap(connection: socket.socket, running: dict[int, int]) -> None:
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _answer(connection, id=running.pop(pid), status=os.waitstatus_to_exitcode(status))


def _answer(connection: socket.socket, **message: int) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        os._exit(0)  # nobody is listening; the stages die by their own lifelines


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the asker decides
    preload()
    _answer(connection, id=-1, pid=os.getpid())
    serve(connection)


if __name__ == "__main__":
    main()
