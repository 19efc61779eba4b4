"""Killed anywhere: nothing torn is ever visible, a rerun gives the same bytes, little work is repeated."""

import os
import signal

import pytest
from faultproxy import Proxy
from scenario import (
    CAMPAIGN,
    INTERVAL,
    PATIENCE,
    REF,
    STEPS,
    check_nothing_torn,
    die_at,
    expected_root,
    in_child,
    run_stage,
)

from storage import open_store
from storage.gc import sweep
from storage.verify import verify


def check_finished(url, cache, log, allowance=INTERVAL):
    with open_store(url, cache=cache) as store:
        assert store.manifest(REF).root == expected_root()
        store.fetch(REF)
        assert store.campaign(*CAMPAIGN).notes() == {"v0": [REF]}
        assert verify(store, *CAMPAIGN).problems == ()
        assert not [key for key in store.list(f"savepoints/{REF.key}") if key.endswith(".json")]
        assert store.warnings == []
    steps = log.read_text().split()
    assert set(steps) == {str(step) for step in range(1, STEPS + 1)}
    assert len(steps) <= STEPS + allowance, f"{len(steps) - STEPS} steps repeated"


def count_events(tmp_path) -> int:
    """Return how many file operations an undisturbed run makes."""
    root = tmp_path / "count" / "store"
    root.parent.mkdir()
    tally = tmp_path / "count" / "tally"

    def work():
        with open(tally, "a") as file:
            die_at(root, -1, lambda what: file.write("x"))
            run_stage(root, None, tmp_path / "count" / "log")

    assert in_child(work) == 0
    return len(tally.read_text())


def kill_once_and_rerun(tmp_path, at):
    home = tmp_path / str(at)
    home.mkdir()
    url, log = home / "store", home / "log"

    def work():
        die_at(url, at)
        run_stage(url, None, log)

    assert in_child(work) == -signal.SIGKILL
    with open_store(url) as store:
        check_nothing_torn(store)
        store.manifest(REF)
        assert store.warnings == []
    assert in_child(lambda: run_stage(url, None, log)) == 0
    check_finished(url, None, log)


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_file_operations(tmp_path, tally, stride):
    events = count_events(tmp_path)
    points = range(1, events + 1, stride)
    for at in points:
        kill_once_and_rerun(tmp_path, at)
    tally("killed at a file operation of a stage", len(points), f"of {events}")
    assert len(points) > 150 // stride


def run_with_kills(tmp_path, every):
    """Run and rerun, killed at every `every`-th file operation; return the exit code that ended it and the runs."""
    url, log = tmp_path / "store", tmp_path / "log"

    def work():
        die_at(url, every)
        run_stage(url, None, log)

    for runs in range(1, 60):
        if (code := in_child(work)) >= 0:
            return code, runs
        with open_store(url) as store:
            check_nothing_torn(store)
    raise AssertionError("it neither ends nor says why")


@pytest.mark.parametrize("every", [83, 97])
def test_killed_again_and_again_it_still_ends(tmp_path, tally, every):
    code, runs = run_with_kills(tmp_path, every)
    tally(f"killed at every {every}th file operation until done", runs, "runs")
    assert code == 0 and runs > 2
    check_finished(tmp_path / "store", None, tmp_path / "log", allowance=INTERVAL * runs)


def test_killed_before_every_save_it_says_that_nothing_moves(tmp_path):
    code, runs = run_with_kills(tmp_path, 61)
    assert code == 1 and PATIENCE < runs < 3 * PATIENCE
    with open_store(tmp_path / "store") as store:
        assert store.manifest(REF) is None and store.save_points(REF).latest().step < STEPS


def test_a_sweep_between_the_kills_takes_nothing_that_is_needed(tmp_path):
    url, log = tmp_path / "store", tmp_path / "log"
    for at in (80, 160, 200):

        def work(at=at):
            die_at(url, at)
            run_stage(url, None, log)

        in_child(work)
        with open_store(url) as store:
            sweep(store, dry_run=False, grace=-2)
    assert in_child(lambda: run_stage(url, None, log)) == 0
    check_finished(url, None, log, allowance=3 * INTERVAL)


def kill_at_request(server, tmp_path, at, when):
    home = tmp_path / f"{when}{at}"
    home.mkdir()
    url, log = server.url(), home / "log"

    def rule(index, method, path):
        return when if index == at else None

    with Proxy(server.endpoint, rule) as proxy:

        def started(pid):
            proxy.target = pid

        def work():
            os.environ.update(server.through(proxy.endpoint))
            run_stage(url, home / "cache", log)

        code = in_child(work, started)
    killed = proxy.faults[when]
    assert code == (-signal.SIGKILL if killed else 0)
    with open_store(url, cache=home / "cache2") as store:
        check_nothing_torn(store)
    assert in_child(lambda: run_stage(url, home / "cache", log)) == 0
    check_finished(url, home / "cache3", log)
    return killed


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone", "moto"], indirect=True)
def test_a_sample_of_s3_requests(s3_server, tmp_path, tally):
    killed = sum(
        kill_at_request(s3_server, tmp_path, at, when) for at, when in [(25, "kill_before"), (60, "kill_after")]
    )
    tally(f"killed before or after a request to {s3_server.name}", killed)
    assert killed == 2


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone", "moto"], indirect=True)
@pytest.mark.parametrize("stride", [3, 1])
def test_s3_requests(s3_server, tmp_path, tally, stride):
    at = killed = 0
    while all(hits := [kill_at_request(s3_server, tmp_path, at, f"kill_{w}") for w in ("before", "after")]):
        killed += sum(hits)
        at += stride
    tally(f"killed before or after a request to {s3_server.name}", killed, f"of {2 * at} places, at most")
    assert killed > 100 // stride
