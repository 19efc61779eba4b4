"""Two runs of one campaign at the same time, each on a worker of its own: every stage is computed once, both end well.

On rclone, which ignores create-only writes, leases are kept apart by the limit of the server.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from benchmarks.reliability.campaigns import project, root_of
from cli import daemon, provision, services
from cli.site import Site, environment

LIMIT = 2000.0  # seconds, on a machine that does much other work

pytestmark = [pytest.mark.slow, pytest.mark.prefect]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with project(tmp_path_factory.mktemp("project")) as made:
        daemon.stop(made.state, "worker")  # the tests bring their own
        yield made


@pytest.fixture
def workers(site: Site, s3: dict[str, str]) -> Iterator[list[int]]:
    """Two workers that take one run each."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", provision.POOL, "--limit", "1"]
    env = {**os.environ, **environment(site), **s3}
    with (site.root / "workers.log").open("ab") as log:
        started = [
            subprocess.Popen([*command, "--name", f"w{n}"], cwd=site.root, env=env, stdout=log, stderr=log, stdin=log)
            for n in (1, 2)
        ]
    yield [worker.pid for worker in started]
    for worker in started:
        for process in psutil.Process(worker.pid).children(recursive=True):
            process.kill()
        worker.kill()
        worker.wait()


@pytest.fixture(params=["folder", *(pytest.param(name, marks=pytest.mark.s3) for name in ("moto", "rclone"))])
def place(request, tmp_path: Path) -> tuple[str, dict[str, str], str]:
    """A store's URL, the environment that reaches it, and what it is."""
    if request.param == "folder":
        return (tmp_path / "store").as_uri(), {}, "folder"
    server = request.getfixturevalue(request.param)
    return server.url(), {**server.env, "ROUNDHOUSE_CACHE": str(tmp_path / "cache")}, server.name


@pytest.fixture
def s3(place: tuple[str, dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in place[1].items():
        monkeypatch.setenv(name, value)
    return place[1]


def test_each_stage_is_computed_once(site: Site, place, workers: list[int], tally) -> None:
    url = place[0]
    with services.client(site) as client:
        deployment = client.read_deployment_by_name("llama2-style/iterative")
        given = {"config": "micro", "store": url}
        runs = [client.create_flow_run_from_deployment(deployment.id, parameters=given).id for _ in range(2)]
        parents: dict[UUID, int] = {}
        deadline = time.monotonic() + LIMIT
        while True:
            found = [client.read_flow_run(run) for run in runs]
            for run in found:
                if run.id not in parents and (run.infrastructure_pid or "").isdigit():
                    parents[run.id] = psutil.Process(int(str(run.infrastructure_pid))).ppid()
            if all(run.state is not None and run.state.is_final() for run in found):
                break
            assert time.monotonic() < deadline, [run.state_name for run in found]
            time.sleep(0.5)
    assert [run.state_name for run in found] == ["Completed", "Completed"]
    assert sorted(parents.values()) == sorted(workers), "both runs went to one worker"
    assert min(run.end_time for run in found) > max(run.start_time for run in found), "they did not overlap"
    states = [_tasks(site, run) for run in runs]
    assert states[0].keys() == states[1].keys() and len(states[0]) >= 19
    computed = Counter(label for tasks in states for label, state in tasks.items() if state == "Completed")
    assert computed == dict.fromkeys(states[0], 1), computed
    assert all(state in ("Completed", "Cached") for tasks in states for state in tasks.values())
    assert root_of(url)[1] == ()
    share = [sum(state == "Completed" for state in tasks.values()) for tasks in states]
    note = f"stages, each once: {share[0]} + {share[1]}"
    tally(f"two runs at once on two workers ({place[2]})", len(computed), note)


def _tasks(site: Site, run: UUID) -> dict[str, str]:
    """State by stage of a run."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with services.client(site) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])), limit=200)
    return {task.name: str(task.state_name) for task in found}
