"""Save points are stored beside the work: what is promised of them holds all the same."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.events import in_child, watch
from configs.runtime import Runtime
from engine.job import Job
from storage import LeaseLost, Ref, SavePoints, open_store
from storage.gc import sweep

REF = Ref("model", "train", "0123456789abcdef")
STEPS = 5
OFTEN = {"save_seconds": 1e-9}  # by time: due after every step


class Slow:
    """Save points whose storing waits until `go` is set, and may then fail."""

    def __init__(self, points: SavePoints, error: Exception | None = None) -> None:
        self.points, self.error = points, error
        self.begun, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.points, name)

    def save(self, *args: Any) -> None:
        self.begun.set()
        assert self.go.wait(30)
        if self.error:
            raise self.error
        self.points.save(*args)


@pytest.fixture
def points(tmp_path: Path) -> Callable[[], SavePoints]:
    return lambda: open_store(tmp_path / "store").save_points(REF)


def write(text: str, **record: Any) -> Callable[[Path], dict[str, Any]]:
    def into(folder: Path) -> dict[str, Any]:
        (folder / "state.json").write_text(text)
        return record

    return into


def test_the_work_goes_on_while_a_save_point_is_stored(make_job: Callable[..., Job], points: Any) -> None:
    slow = Slow(points())
    job = make_job("train", None, saves=slow, runtime=OFTEN)
    counters = {"tokens": 1}
    job.save(1, lambda folder: write("one")(folder) | {"counters": counters})
    assert slow.begun.wait(30)
    counters["tokens"] = 2  # of the next step, which is computed meanwhile
    job.metrics(2, {"loss": 0.5})
    assert points().latest() is None
    slow.go.set()
    job.finish()
    found = points().latest()
    assert found.step == 1 and found.record["counters"] == {"tokens": 1}  # as it was when the step ended
    assert (found.path / "metrics.jsonl").read_text() == ""


def test_the_next_one_waits_for_it_and_the_last_two_are_kept(make_job: Callable[..., Job], points: Any) -> None:
    job = make_job("train", None, saves=points(), runtime=OFTEN)
    for step in range(1, 5):
        job.save(step, write(str(step)))
    job.finish()
    kept = [path for path in points()._store.list(f"savepoints/{REF.key}") if path.endswith("state.json")]
    assert points().latest().step == 4 and len(kept) == 2


def test_a_write_that_fails_fails_the_work_at_its_next_step(make_job: Callable[..., Job], points: Any) -> None:
    slow = Slow(points(), LeaseLost("taken over"))
    slow.go.set()
    job = make_job("train", None, saves=slow, runtime=OFTEN)
    job.save(1, write("one"))
    with pytest.raises(LeaseLost, match="taken over"):
        for step in range(2, 10**6):
            job.should_save(step)
    job.finish()  # told once


def test_a_write_that_fails_last_fails_the_end(make_job: Callable[..., Job], points: Any) -> None:
    slow = Slow(points(), LeaseLost("taken over"))
    job = make_job("train", None, saves=slow, runtime=OFTEN)
    job.save(1, write("one"))
    slow.go.set()
    with pytest.raises(LeaseLost, match="taken over"):
        job.finish()


def test_counted_in_steps_it_is_stored_before_the_next_step(make_job: Callable[..., Job], points: Any) -> None:
    job = make_job("train", None, saves=points(), runtime={"save_steps": 2})
    assert [step for step in range(1, 7) if job.should_save(step)] == [2, 4, 6]
    job.save(2, write("two"))
    assert points().latest().step == 2


def test_it_is_begun_as_much_earlier_as_storing_takes(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, points: Any
) -> None:
    """save_seconds 30, storing took 4 s: due 26 s after the last snapshot, so that the next one is whole at 30."""
    job = make_job("train", None, saves=points(), runtime={"save_seconds": 30.0})
    clock = [job._last_save]
    monkeypatch.setattr("engine.job.time.monotonic", lambda: clock[0])
    due = lambda after: (clock.__setitem__(0, job._last_save + after), job.should_save(1))[1]
    assert not due(29.9) and due(30.1)
    job._writing = 4.0
    assert not due(25.9) and due(26.1)
    job._writing = 100.0  # a store that is too slow: at most half of the time is spent on it
    assert not due(14.9) and due(15.1)


def advance(state: str, step: int) -> str:
    return hashlib.sha256(f"{state}/{step}".encode()).hexdigest()


def work(home: Path, fatal: int, log: Path) -> None:
    """Steps with a save point after each, killed before the thread's file operation number `fatal`; the end in `result`."""
    saves = open_store(home / "store").save_points(REF)
    runtime = Runtime(save_seconds=1e-9)
    job = Job(stage="train", recipe=None, inputs={}, out=home, runtime=runtime, saves=saves)
    state, first = "start", 0
    if point := job.resume():
        state, first = (point.path / "state.json").read_text(), point.step
    seen = [0]

    def happened(what: str, path: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            seen[0] += 1
            with log.open("a") as file:
                file.write(".")
            if seen[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    watch(home / "store", happened)
    for step in range(first + 1, STEPS + 1):
        state = advance(state, step)
        with (home / "steps").open("a") as file:
            file.write(f"{step}\n")
        if step < STEPS and job.should_save(step):
            job.save(step, write(state))
    job.finish()
    (home / "result").write_text(state)


@pytest.mark.parametrize("stride", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_file_operation_of_the_writer_it_ends_with_the_same_bytes(tmp_path: Path, stride: int) -> None:
    """At most two steps are repeated: the one whose save point was being stored, and the one computed meanwhile."""
    expected = "start"
    for step in range(1, STEPS + 1):
        expected = advance(expected, step)
    (tmp_path / "count").mkdir()
    assert in_child(lambda: work(tmp_path / "count", -1, tmp_path / "log")) == 0
    events = len((tmp_path / "log").read_text())
    assert events > 40
    for fatal in range(1, events + 1, stride):
        _kill_and_rerun(tmp_path / str(fatal), fatal, tmp_path / "log", expected)


def _kill_and_rerun(home: Path, fatal: int, log: Path, expected: str) -> None:
    home.mkdir()
    assert in_child(lambda: work(home, fatal, log)) == -signal.SIGKILL
    store = open_store(home / "store")
    found = store.save_points(REF).latest()
    assert store.warnings == []  # what is there is whole: the one before, or the one that was being stored
    done = [int(line) for line in (home / "steps").read_text().split()]
    assert done[-1] - (found.step if found else 0) <= 2
    assert in_child(lambda: work(home, -1, log)) == 0
    assert (home / "result").read_text() == expected


def test_what_resumable_work_reads_is_kept(make_job: Any, points: Callable[[], SavePoints], tmp_path: Path) -> None:
    """A save point names the inputs of its stage: no sweep takes them, though no campaign notes them any more."""
    store, given = open_store(tmp_path / "store"), Ref("rows", "examples", "a" * 16)
    draft = store.draft(given)
    (draft.path / "x.json").write_text("{}")
    draft.commit({})
    job = make_job("train", None, saves=points(), runtime={"save_steps": 1})
    job.spec = {"inputs": {"rows": [given.key]}}
    job.save(1, write("1"))
    sweep(store, grace=0.0, dry_run=False)
    assert store.manifest(given) is not None
    points().drop()
    sweep(store, grace=0.0, dry_run=False)
    assert store.manifest(given) is None
