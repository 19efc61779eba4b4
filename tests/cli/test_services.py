"""The services come up with the settings that keep runs alive and safe, and go without leaving anything."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import free_port

from cli import daemon, services
from cli.site import ServiceError, Site, environment, s3_environment, write_toml

Prefect = Callable[..., subprocess.CompletedProcess[str]]
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)  # sleeper"]
FAMILY = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "time.sleep(600)  # sleeper"
)
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('ready', 'w')\ntime.sleep(600)  # sleeper"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_daemon_is_found_again_and_stopped(tmp_path: Path) -> None:
    started = daemon.start(tmp_path, "it", SLEEPER, os.environ, tmp_path, "sleeper")
    assert daemon.find(tmp_path, "it") == started
    assert daemon.stop(tmp_path, "it") == []
    assert daemon.find(tmp_path, "it") is None and not psutil.pid_exists(started.pid)


def test_a_process_with_a_reused_pid_is_not_stopped(tmp_path: Path) -> None:
    """The record names a live pid, but another start time (or another program): it is somebody else's."""
    stranger = subprocess.Popen(SLEEPER)
    try:
        true = {"name": "it", "pid": stranger.pid, "started": psutil.Process(stranger.pid).create_time(), "log": "x"}
        for record in ({**true, "mark": "rclone"}, {**true, "mark": "sleeper", "started": true["started"] - 60}):
            (tmp_path / "it.json").write_text(json.dumps(record))
            assert daemon.find(tmp_path, "it") is None
            assert daemon.stop(tmp_path, "it") == []
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_stopping_takes_the_grandchildren_along(tmp_path: Path) -> None:
    started = daemon.start(tmp_path, "it", [sys.executable, "-c", FAMILY], os.environ, tmp_path, "sleeper")
    top = psutil.Process(started.pid)
    while not (children := top.children(recursive=True)):
        time.sleep(0.05)
    daemon.stop(tmp_path, "it", grace=0.5)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    started = daemon.start(tmp_path, "it", [sys.executable, "-c", STUBBORN], os.environ, tmp_path, "sleeper")
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    assert daemon.stop(tmp_path, "it", grace=0.5) == [started.pid]
    assert not psutil.pid_exists(started.pid)


def test_sigint_reaches_a_daemon_even_if_we_ignore_it(tmp_path: Path) -> None:
    """A shell makes background jobs ignore SIGINT; a Prefect worker started like that can never be stopped."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started = daemon.start(tmp_path, "it", SLEEPER, os.environ, tmp_path, "sleeper")
    finally:
        signal.signal(signal.SIGINT, before)
    ignored = int(next(s for s in Path(f"/proc/{started.pid}/status").read_text().split("\n") if "SigIgn" in s)[7:], 16)
    daemon.stop(tmp_path, "it")
    assert not ignored & (1 << (signal.SIGINT - 1))


def test_secrets_are_generated_once_and_private(tmp_path: Path) -> None:
    site = Site(tmp_path, 1, 2)
    first = environment(site)["PREFECT_API_AUTH_STRING"]
    assert environment(site)["PREFECT_API_AUTH_STRING"] == first and len(first.split(":")[1]) >= 32
    keys = s3_environment(site)
    assert len(keys["AWS_ACCESS_KEY_ID"]) >= 16 and len(keys["AWS_SECRET_ACCESS_KEY"]) >= 32
    assert s3_environment(site) == keys
    write_toml(site)
    for name in ("auth", "s3.keys", "s3.env"):
        assert mode(site.state / name) == 0o600
    assert mode(site.toml) == 0o600 and mode(site.state) == 0o700
    (tmp_path / "b").mkdir()
    assert environment(Site(tmp_path / "b", 1, 2))["PREFECT_API_AUTH_STRING"] != first


def test_a_foreign_prefect_toml_is_left_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, 1, 2)
    site.toml.write_text("# mine\n")
    with pytest.raises(ServiceError, match="not ours: move it away"):
        write_toml(site)
    services.down(site, say=lambda line: None)
    assert site.toml.read_text() == "# mine\n"


def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} is taken .* ROUNDHOUSE_PORT="):
            services.up(Site(tmp_path, port, free_port()), say=lambda line: None)
    assert not (tmp_path / "prefect.toml").exists()


@pytest.mark.parametrize("text", ["http", "0", "70000", "-1"])
def test_a_port_that_is_none_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_PORT", text)
    with pytest.raises(ServiceError, match="is not a port"):
        Site(tmp_path)


@pytest.mark.s3
def test_the_s3_server_checks_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import StorageError, open_store

    site = Site(tmp_path, free_port(), free_port())
    site.state.mkdir()
    client = services.start_s3(site, say=lambda line: None)
    try:
        again = services.start_s3(site, say=lambda line: None)
        assert again == client
        command = " ".join(psutil.Process(daemon.find(site.state, "s3").pid).cmdline())  # type: ignore[union-attr]
        assert client["AWS_SECRET_ACCESS_KEY"] not in command
        for name, value in client.items():
            monkeypatch.setenv(name, value)
        open_store(client["ROUNDHOUSE_STORE"]).check_writable()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0" * 40)
        with pytest.raises(StorageError):
            open_store(client["ROUNDHOUSE_STORE"]).check_writable()
    finally:
        services.down(site, say=lambda line: None)
    assert daemon.find(site.state, "s3") is None


@pytest.mark.prefect
def test_the_bare_command_runs_the_deployment(house: Site, prefect: Prefect) -> None:
    """As the user types it: in the project folder, with nothing exported, under authentication."""
    note = house.root / "bare"
    words = ["deployment", "run", "llama2-style/iterative", "-p", "config=micro", "-p", f"note={note}", "--watch"]
    done = prefect(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert note.read_text() == "ended\n"
    with services.client(house) as client:
        run = next(run for run in client.read_flow_runs() if run.parameters.get("note") == str(note))
    assert run.state_name == "Completed" and run.parameters["config"] == "micro"


@pytest.mark.prefect
def test_nobody_gets_in_without_the_secret(house: Site) -> None:
    request = urllib.request.Request(f"{house.url}/flow_runs/count", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    request = urllib.request.Request(f"{house.url}/health", headers={"Origin": "https://evil.example"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers.get("access-control-allow-origin") is None
    # The socket listens on loopback only.
    listening = [
        c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == house.port
    ]
    assert listening == ["127.0.0.1"]


def _armed_by(automation: Any, after: set[str]) -> Any:
    from prefect.events.schemas.automations import AutomationCore

    told = automation.model_dump(exclude={"id"})
    return AutomationCore.model_validate({**told, "trigger": {**told["trigger"], "after": after}})


@pytest.mark.prefect
def test_up_again_changes_nothing_but_what_an_earlier_version_made(house: Site) -> None:
    from cli import provision

    before = {name: daemon.find(house.state, name) for name in ("server", "worker")}
    with services.client(house) as client:  # as an earlier version of the project made it
        (made,) = client.read_automations_by_name(provision.ZOMBIES)
        client.delete_automation(made.id)
        client.create_automation(_armed_by(made, {"prefect.flow-run.heartbeat"}))
    services.up(house, say=lambda line: None)
    assert {name: daemon.find(house.state, name) for name in ("server", "worker")} == before
    with services.client(house) as client:
        (found,) = client.read_automations_by_name(provision.ZOMBIES)
        assert found.trigger.after == {"prefect.flow-run.Running", "prefect.flow-run.heartbeat"}
        assert sorted(d.name for d in client.read_deployments()) == ["iterative", "resume"]
        pool = client.read_work_pool(provision.POOL)
        assert pool.base_job_template["variables"]["properties"]["stream_output"]["default"] is False
        limits = {limit.name: limit.limit for limit in client.read_global_concurrency_limits()}
    assert limits["roundhouse-device-0"] == 1 and len(limits) >= services.LANES


@pytest.mark.prefect
def test_the_running_server_has_the_measured_settings(house: Site) -> None:
    """Read from the server and the worker themselves, not from what we meant to give them."""
    with services.client(house) as client:
        settings = client.request("GET", "/admin/settings").json()
    assert settings["server"]["concurrency"]["lease_storage"].endswith(".filesystem")
    assert settings["flows"]["heartbeat_frequency"] == 30
    assert settings["server"]["analytics_enabled"] is False
    assert settings["home"] == str(house.state / "prefect")
    worker = daemon.find(house.state, "worker")
    assert worker is not None
    env = psutil.Process(worker.pid).environ()
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30" and env["ROUNDHOUSE_DEVICE_LIMITS"] == "1"


@pytest.mark.slow
@pytest.mark.slow_short
@pytest.mark.prefect
def test_down_ends_the_runs_and_says_so(house: Site) -> None:
    """A stopped worker kills its run without telling the server; the run must not look alive afterwards."""
    note = house.root / "long"
    with services.client(house) as client:
        deployment = client.read_deployment_by_name("llama2-style/iterative")
        parameters = {"config": "micro", "seconds": 300, "note": str(note), "device": 5}
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    while not note.exists():
        time.sleep(0.2)
    worker = daemon.find(house.state, "worker")
    assert worker is not None
    flow = psutil.Process(worker.pid).children(recursive=True)
    assert flow
    lines: list[str] = []
    services.down(house, say=lines.append)
    assert any("marked Crashed" in line for line in lines), lines
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in flow)
    assert services.status(house) == {"server": "stopped", "worker": "stopped", "s3": "stopped"}
    assert services.serving(house) is None and not house.toml.exists()
    services.up(house, say=lambda line: None)  # the same database: the run is remembered as Crashed
    with services.client(house) as client:
        assert client.read_flow_run(run.id).state_name == "Crashed"
