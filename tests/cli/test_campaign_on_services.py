"""The real flow on real services: server, worker, `prefect` command; killed, resumed, cancelled, run again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from servers import free_port

from cli import daemon, services
from cli.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.slow_short, pytest.mark.prefect]
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds to wait for anything; micro is 20 s of work


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A folder that looks like the project from Prefect's side: its prefect.yaml, flows and configs."""
    root = tmp_path_factory.mktemp("project")
    for name in ("flows", "configs", "prefect.yaml"):
        (root / name).symlink_to(ROOT / name)
    made = Site(root, free_port(), free_port())
    services.up(made, say=lambda line: None)
    yield made
    services.down(made, say=lambda line: None)


def deploy_run(site: Site, deployment: str, store: str | None = None, *, watch: bool = True) -> UUID:
    """The user's command; returns the id of the run that it made."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_"))}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", f"llama2-style/{deployment}"]
    command += ["-p", "config=micro"] + (["-p", f"store={store}"] if store else []) + (["--watch"] if watch else [])
    done = subprocess.run(command, cwd=site.root, env=env, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    with services.client(site) as client:
        newest = client.read_flow_runs(limit=20)
    return max(newest, key=lambda run: run.created.timestamp() if run.created else 0.0).id


def wait(claim: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if value := claim():
            return value
        time.sleep(0.3)
    raise AssertionError(f"did not happen within {LIMIT:.0f} s: {claim}")


def tasks(site: Site, run: UUID) -> dict[str, str]:
    """State name by stage of a run."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with services.client(site) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])), limit=200)
    return {task.name: str(task.state_name) for task in found}


def state(site: Site, run: UUID) -> str:
    with services.client(site) as client:
        return str(client.read_flow_run(run).state_name)


def process_of(site: Site, run: UUID) -> psutil.Process:
    with services.client(site) as client:
        return psutil.Process(int(str(client.read_flow_run(run).infrastructure_pid)))


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_killed_resumed_and_run_again(site: Site, tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    run = deploy_run(site, "iterative", store, watch=False)
    wait(lambda: "Completed" in tasks(site, run).values())  # something is finished, something is not
    flow, worker = process_of(site, run), daemon.find(site.state, "worker")
    assert worker is not None
    doomed = family(flow)
    lost = psutil.Process(worker.pid)
    lost.suspend()  # a host that loses its power reports nothing
    flow.kill()
    lost.kill()
    wait(lambda: not alive(doomed))  # the stages die with their flow, by themselves
    assert state(site, run) == "Running"

    services.up(site, say=lambda line: None)
    again = deploy_run(site, "resume")
    assert state(site, run) == "Crashed" and state(site, again) == "Completed"
    assert "Cached" in tasks(site, again).values()

    third = deploy_run(site, "iterative", store)
    assert state(site, third) == "Completed"
    assert set(tasks(site, third).values()) == {"Cached"}

    with services.client(site) as client:
        logs = [entry.message for entry in client.read_logs(limit=200)]
        artifacts = {artifact.type for artifact in client.read_artifacts()}
    assert any(" | " in line for line in logs)  # a stage's own output is in the run's log
    assert {"progress", "table", "markdown"} <= artifacts


def test_cancelling_ends_the_child_processes(site: Site, tmp_path: Path) -> None:
    run = deploy_run(site, "iterative", (tmp_path / "store").as_uri(), watch=False)
    wait(lambda: "Running" in tasks(site, run).values())
    doomed = family(process_of(site, run))
    wait(lambda: len(family(doomed[0])) > 1)
    doomed = family(doomed[0])
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_"))}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "flow-run", "cancel", str(run)]
    subprocess.run(command, cwd=site.root, env=env, check=True, capture_output=True, timeout=60)
    wait(lambda: not alive(doomed))
    wait(lambda: state(site, run) == "Cancelled")


def test_bad_parameters_are_one_clear_line(site: Site) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_"))}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", "llama2-style/iterative"]
    done = subprocess.run([*command, "-p", "confg=micro"], cwd=site.root, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "confg" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
