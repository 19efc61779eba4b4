"""The Prefect server of a single `roundhouse run`: private to the process, and gone with it however it ends.

Prefect's own ephemeral server is left behind by a kill -9, lets anybody on the machine in, and follows whatever
profile the user has. This one hangs on a pipe whose other end only our process holds, asks for the folder's secret,
and keeps its database in `.roundhouse/embedded` (a second run at the same time gets a folder of its own).
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cli.services import serving
from cli.site import ServiceError, Site, environment

_TIMEOUT = 180.0  # seconds; 13-16 s with a new database and 7 s with an old one on two idle cores
# The command runs in the background; `cat` ends when our end of the pipe is closed, by us or by the kernel.
_LIFELINE = '"$@" </dev/null & child=$!; cat >/dev/null; kill $child 2>/dev/null; wait $child'


@dataclass(frozen=True)
class Place:
    """Which Prefect server this process reports to; `home` is set if we have to start it."""

    home: Path | None
    env: dict[str, str]


def choose(site: Site | None = None) -> Place:
    """Decide on the server and put its settings into the environment; nothing is started yet.

    The user's own (PREFECT_API_URL), else this folder's if it is up, else one for this process. To be called before
    Prefect is imported, which reads its settings then; in a process that has it already, its settings are kept.
    """
    return _choose(site or Site())


@cache
def _choose(site: Site) -> Place:
    if os.environ.get("PREFECT_API_URL") or "prefect" in sys.modules:
        return Place(None, {})
    folder = serving(site)
    if folder is not None:
        os.environ.update(folder, PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="ERROR")  # the progress display is the console
        return Place(None, folder)
    site.state.mkdir(mode=0o700, exist_ok=True)
    own = Site(site.root, _free_port(), site.s3_port)
    env = environment(own)
    del env["ROUNDHOUSE_DEVICE_LIMITS"]  # limits live on a lasting server
    home = _home(site)
    env |= {"PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "ERROR"}
    os.environ.update(env)
    return Place(home, env)


@contextlib.contextmanager
def server(place: Place) -> Iterator[None]:
    """Run the chosen server, if it is ours to run, while the block lasts.

    Raises:
        ServiceError: it died or did not answer in time; the message ends with its output.
    """
    if place.home is None:
        yield
        return
    log = place.home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _LIFELINE, "sh", *_command(place.env["PREFECT_SERVER_API_PORT"])],
            env={**os.environ, "PREFECT_SERVER_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: the server must live to record how the run ended
        )
    try:
        _await(process, f"{place.env['PREFECT_API_URL']}/health", log)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        if place.home.name.startswith("embedded-"):
            shutil.rmtree(place.home, ignore_errors=True)


def _command(port: str) -> list[str]:
    spec = find_spec("prefect")
    assert spec is not None and spec.origin is not None
    folder = str(Path(spec.origin).parent)
    app = ["--app-dir", folder, "--factory", "prefect.server.api.server:create_app"]
    return [sys.executable, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", port, "--log-level", "error"]


def _await(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
        time.sleep(0.1)
    if process.poll() is None:
        load, cores = os.getloadavg()[0], os.cpu_count()
        raise ServiceError(
            f"Prefect's server did not answer within {_TIMEOUT:.0f} s (load {load:.0f} on {cores} cores): "
            "run again when the machine is less busy"
        )
    end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise ServiceError(
        f"Prefect's server did not start (`roundhouse doctor` looks for the reason); its last words:\n{end}"
    )


def _home(site: Site) -> Path:
    """The folder of the private server's database: the lasting one, or a new one while another run has it."""
    home = site.state / "embedded"
    home.mkdir(exist_ok=True)
    lock = os.open(home / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until this process ends, however it ends
    except BlockingIOError:
        os.close(lock)
        return Path(tempfile.mkdtemp(prefix="embedded-", dir=site.state))
    return home


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
