"""Refreshes on a real server: the deployment, its follow-up started once, and the schedule switched on."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from servers import free_port
from test_campaign_on_services import state, tasks, wait

from cli import daemon, services
from cli import schedule as schedules
from cli.site import ServiceError, Site
from storage.names import seal, unseal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "flows"))
from refreshes import House, shore

pytestmark = [pytest.mark.slow, pytest.mark.prefect]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The project's own prefect.yaml, flows and configs on services of their own."""
    root = tmp_path_factory.mktemp("project")
    for name in ("flows", "configs", "prefect.yaml"):
        (root / name).symlink_to(ROOT / name)
    made = Site(root, free_port(), free_port())
    services.up(made, say=lambda line: None)
    yield made
    services.down(made, say=lambda line: None)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A campaign that was run, with documents waiting in the inbox of its refresh."""
    made = House(tmp_path_factory.mktemp("house"), [])
    made.align()
    made.put("a.jsonl", shore()[:50])
    return made


def run(site: Site, deployment: str, house: House) -> UUID:
    """The deployment, run to its end; returns the id of the run."""
    with services.client(site) as client:
        found = client.read_deployment_by_name(f"continued-pretraining/{deployment}")
        parameters = {"config": str(house.root / "refresh.yaml"), "store": house.store}
        made = client.create_flow_run_from_deployment(found.id, parameters=parameters)
    wait(lambda: state(site, made.id) in ("Completed", "Failed", "Crashed", "NothingNew"))
    return made.id


def realignments(site: Site) -> list[Any]:
    with services.client(site) as client:
        of = client.read_deployment_by_name("continued-pretraining/realign").id
        return [found for found in client.read_flow_runs(limit=200) if found.deployment_id == of]


def test_refreshed_then_nothing_new_then_followed_up_once(site: Site, house: House) -> None:
    first = run(site, "refresh", house)
    assert state(site, first) == "Completed"
    stages = {"gather", "pack", "base", "measure", "transplant", "rebuilt-v0", "rebuilt-evaluate", "decide"}
    assert {f"r1-{stage}" for stage in stages} <= set(tasks(site, first))
    assert state(site, run(site, "refresh", house)) == "NothingNew"
    assert realignments(site) == []
    with services.client(site) as client:
        assert {"losses-micro-again-r1", "decision-micro-again-r1"} <= {a.key for a in client.read_artifacts()}

    (path,) = (house.root / "store/refreshes").rglob("r0001.json")  # as if the decision had been another
    path.write_bytes(seal(unseal(path.read_bytes()) | {"action": "short-sft"}))
    for _ in range(2):
        assert state(site, run(site, "refresh", house)) == "NothingNew"
    (path.parent / "r0001-followed.json").unlink()  # as if the run had died before it said so
    assert state(site, run(site, "refresh", house)) == "NothingNew"
    (follow,) = realignments(site)
    wait(lambda: state(site, follow.id) in ("Completed", "Failed", "Crashed"))
    assert state(site, follow.id) == "Completed" and "r1-short-sft" in tasks(site, follow.id)


def test_one_command_switches_the_schedule_on_and_up_leaves_it_on(site: Site) -> None:
    def planned() -> list[datetime]:
        with services.client(site) as client:
            found = client.read_deployment_by_name("continued-pretraining/refresh")
            runs = [r for r in client.read_flow_runs(limit=200) if r.deployment_id == found.id]
        return [r.expected_start_time for r in runs if r.state_name == "Scheduled" and r.expected_start_time]

    lines: list[str] = []
    schedules.switch(None, site, lines.append)
    assert lines == ["continued-pretraining/refresh: cron '0 3 * * 0', time zone Etc/UTC, off"] and planned() == []
    schedules.switch(True, site, lines.append)
    assert lines[-1].endswith("on")
    times = wait(planned)
    assert all(t.weekday() == 6 and (t.hour, t.minute) == (3, 0) and t > datetime.now(UTC) for t in times)
    services.up(site, say=lambda line: None)
    schedules.switch(None, site, lines.append)
    assert lines[-1].endswith("on")
    schedules.switch(False, site, lines.append)
    wait(lambda: planned() == [])


def test_without_a_server_the_schedule_says_so(tmp_path: Path) -> None:
    assert daemon.find(tmp_path, "server") is None
    with pytest.raises(ServiceError, match="no Prefect server is up in this folder: `make up` first"):
        schedules.switch(True, Site(tmp_path, free_port(), free_port()))
