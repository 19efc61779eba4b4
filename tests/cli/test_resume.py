"""`resume` finds the last run, ends it if it only looks alive, and continues it with its own parameters."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import State, StateType

from cli import daemon, services
from cli.resume import resume
from cli.site import Site
from storage import open_store
from tasks import runs

pytestmark = pytest.mark.prefect


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def start(site: Site, note: Path, **parameters: Any) -> UUID:
    """Start a run through the deployment and wait until its stage is at work.

    Each test takes another device: a killed run holds its own for a minute, until the lease has run out.
    """
    with services.client(site) as client:
        deployment = client.read_deployment_by_name("llama2-style/iterative")
        run = client.create_flow_run_from_deployment(deployment.id, parameters={**parameters, "note": str(note)})
    while not note.exists():
        time.sleep(0.2)
    return run.id


def lose_the_host(site: Site) -> None:
    """Kill the worker and all below it at once, as a power cut does."""
    worker = daemon.find(site.state, "worker")
    assert worker is not None
    top = psutil.Process(worker.pid)
    top.send_signal(signal.SIGSTOP)  # so that it cannot report its children's death
    for process in [*top.children(recursive=True), top]:
        process.kill()


def state(site: Site, run: UUID) -> str | None:
    with services.client(site) as client:
        return client.read_flow_run(run).state_name


@pytest.mark.slow
@pytest.mark.slow_short
def test_a_worker_that_is_online_gets_the_continuation(house: Site, tmp_path: Path) -> None:
    note = tmp_path / "a"
    run = start(house, note, config="again", seed=5, seconds=0.1, device=3)
    while state(house, run) != "Completed":
        time.sleep(0.2)
    done: list[str] = []
    resume("again", lambda **parameters: pytest.fail("it has completed"), site=house, say=done.append)
    assert done[-1] == "nothing to resume"
    with services.client(house) as client:
        runs.crash(client, client.read_flow_run(run), "the test says so")
    note.unlink()
    said: list[str] = []
    resume("again", lambda **parameters: pytest.fail("a worker is online"), site=house, say=said.append)
    while not note.exists() or note.read_text() != "ended\n":
        time.sleep(0.2)
    with services.client(house) as client:
        newest = next(r for r in client.read_flow_runs() if r.parameters.get("config") == "again" and r.id != run)
    assert newest.parameters == {"config": "again", "seed": 5, "seconds": 0.1, "device": 3, "note": str(note)}
    assert str(newest.id) in said[-1]


def test_a_run_whose_host_vanished_is_ended_and_continued(house: Site, tmp_path: Path) -> None:
    run = start(house, tmp_path / "a", config="lost", seed=11, seconds=300, device=1)
    lose_the_host(house)
    assert state(house, run) == "Running"  # nobody told the server
    said: list[str] = []
    given: list[dict[str, Any]] = []
    resume(None, lambda **parameters: given.append(parameters), site=house, say=said.append)
    assert state(house, run) == "Crashed"
    assert given == [{"config": "lost", "seed": 11, "seconds": 300, "device": 1, "note": str(tmp_path / "a")}], said


def test_a_live_run_is_left_alone_and_a_silent_one_waited_for(
    house: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof on this host comes first; a run of another host leaves no process to look at: its heartbeats decide."""
    run = start(house, tmp_path / "a", config="lively", seconds=300, device=2)
    said: list[str] = []
    resume("lively", lambda **parameters: pytest.fail("it ran twice"), site=house, say=said.append)
    assert said == ["run lively of lively is Running: nothing to resume"]
    assert state(house, run) == "Running"
    lose_the_host(house)
    with services.client(house) as client:
        far = client.read_flow_run(run)
        monkeypatch.setattr(runs, "is_gone", lambda client, run: False)  # what the pool of another host answers
        assert runs.verdict(client, far) == "silent"
        monkeypatch.setattr(runs, "SILENCE", timedelta(seconds=6))
        began = time.monotonic()
        assert runs.await_verdict(client, far, lambda line: None) is False
        assert time.monotonic() - began < 30
        runs.crash(client, far, "the test is over")


@pytest.mark.slow
@pytest.mark.slow_short
@pytest.mark.parametrize("stuck", ["PENDING", "CANCELLING"])
def test_a_run_that_stuck_on_its_way_is_ended_too(house: Site, stuck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed by a worker that died, or cancelled when nobody was left to cancel it: neither has a heartbeat."""
    monkeypatch.setattr(runs, "SILENCE", timedelta(seconds=3))
    with services.client(house) as client:
        deployment = client.read_deployment_by_name("llama2-style/iterative")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"config": stuck, "seed": 2}, state=State(type=StateType[stuck])
        )
        found = runs.settle(client, stuck, "tiny", lambda line: None)
    assert found.alive is None and found.parameters == {"config": stuck, "seed": 2}
    assert state(house, run.id) == "Crashed"


def test_a_queued_run_is_not_run_twice(house: Site) -> None:
    with services.client(house) as client:
        deployment = client.read_deployment_by_name("llama2-style/iterative")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"config": "queued"}, work_queue_name="nobody-listens"
        )
        found = runs.settle(client, "queued", "tiny", lambda line: None)
        assert found.alive is not None and found.alive.id == run.id
        later = client.create_flow_run_from_deployment(deployment.id, parameters={"config": "later"}, state=_tomorrow())
        assert runs.settle(client, "later", "tiny", lambda line: None).alive is None
        client.delete_flow_run(later.id)
        client.delete_flow_run(run.id)


def _tomorrow() -> State:
    from prefect.states import Scheduled

    return Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))


def test_without_a_server_the_store_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_STORE", (tmp_path / "store").as_uri())
    nowhere = Site(tmp_path, 1, 2)
    with pytest.raises(LookupError, match="remembers no run: say which config"):
        resume(None, lambda **parameters: None, site=nowhere, say=lambda line: None)
    runs.remember(open_store((tmp_path / "store").as_uri()), {"config": "micro", "seed": 3})
    given: list[dict[str, Any]] = []
    resume(None, lambda **parameters: given.append(parameters), site=nowhere, say=lambda line: None)
    resume("tiny", lambda **parameters: given.append(parameters), site=nowhere, say=lambda line: None)
    assert given == [{"config": "micro", "seed": 3}, {"config": "tiny"}]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"parameters": 1}'])
def test_a_damaged_hint_counts_as_none(text: bytes, tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    store.put_state(runs.HINT, text)
    assert runs.recall(store) is None


def test_all_spellings_of_a_config_name_one_campaign(tmp_path: Path) -> None:
    for spelling in ("tiny", "configs/tiny.yaml", "./configs/tiny.yaml", str(tmp_path / "configs" / "tiny.yaml")):
        assert runs.campaign(spelling, tmp_path) == "tiny"
    assert runs.campaign("mine/tiny.yaml", tmp_path) != "tiny"
