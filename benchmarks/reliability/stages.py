"""Every stage of the micro campaign, killed at its file operations and step boundaries, in the parent and in the child.

`python -m benchmarks.reliability.stages RESULTS [--only LABELS] [--sample N] [--parts N] [--seconds S]` adds one line for
each part of a stage's points to the JSON lines of RESULTS and leaves out what is there already, so that it can be ended
and called again.

A stage's inputs are committed (hard links to a finished campaign's), the rest of the store is empty. One process does
`tasks.stage.produce`, its child the work, as in a run; both are forks of this one, which has everything imported. What
is counted: file operations of the parent, of the child, and steps (the child's calls of `Job.progress`).
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reliability.events import Counter, in_child, watch
from configs import load
from engine import forkserver
from engine.job import Job
from flows.rounds import align
from storage import Store, open_store
from storage.attempt import altered, read_manifest
from storage.errors import NotFound
from tasks import Run, launch
from tasks.launch import StageFailed
from tasks.stage import Stage, produce

SAVE_STEPS = 2  # steps between save points; the campaign's own 4 leave some stages without any
FAILED = 3  # exit code of a parent whose child died
Point = tuple[str, int]


class Fork:
    """A forked process with the interface that `tasks.launch` asks of its warm server."""

    def __init__(self, theirs: socket.socket) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, 4096)
            with contextlib.suppress(BaseException):
                forkserver.serve(theirs)
            os._exit(0)
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or 3600.0)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fork server", timeout or 0.0)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        os.kill(self.pid, 9)


@dataclass
class Outcome:
    """One stage's kills. `longest` is the longest stretch of steps between two save points, the most that may be repeated."""

    label: str
    work: str
    part: int = 0
    points: dict[str, int] = field(default_factory=dict)  # by role: how many there are
    tried: dict[str, int] = field(default_factory=dict)  # by role: how many ended a process
    missed: int = 0  # points that an earlier run had and this one did not reach
    longest: int = 0
    saves: int = 0
    repeated: int = 0  # the most steps that a kill made the stage repeat
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def campaign(folder: Path) -> Run:
    """The micro campaign, laid out over a store that has all of it; made first if need be, in a fork."""

    def lay_out(mode: str) -> Run:
        config = load("micro")
        run = Run(config, open_store(folder), config.runtime, mode=mode)  # type: ignore[arg-type]
        align(run)
        return run

    def make() -> None:
        launch.use(Fork)
        lay_out("direct")
        launch.stop_all()

    assert in_child(make) == 0, "the undisturbed campaign failed"
    return lay_out("plan")


def with_inputs(stage: Stage, finished: Store, home: Path) -> Store:
    """A new store that holds the stage's inputs and nothing else."""
    assert finished.backend.folder is not None
    for ref in set(stage.input_refs()):
        source = finished.backend.folder / "artifacts" / ref.key
        shutil.copytree(source, home / "artifacts" / ref.key, copy_function=os.link, dirs_exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    return open_store(home)


def attempt(stage: Stage, store: Store, log: Path, counter: Counter) -> int:
    """Produce the stage in a fork whose events are counted; returns the exit code. Steps and saves are lines of `log`."""

    def work() -> None:
        parent = os.getpid()
        watch(
            store.backend.folder or Path(),
            lambda what, path: counter.happened("parent" if os.getpid() == parent else "child", what, path),
        )
        _watch_steps(log, lambda: counter.happened("step", "step"))
        launch.use(Fork)
        runtime = load("micro").runtime.model_copy(update={"save_steps": SAVE_STEPS})
        try:
            produce(stage, store, runtime)
        except StageFailed:
            os._exit(FAILED)

    return in_child(work)


def _watch_steps(log: Path, happened: Callable[[], None]) -> None:
    """Note every step and every save point that the work tells its job about."""
    progress, save = Job.progress, Job.save

    def told(job: Job, done: int, total: int, unit: str = "step") -> None:
        _note(log, "step")
        happened()
        progress(job, done, total, unit)

    def saved(job: Job, step: int, write: Callable[[Path], Any]) -> None:
        save(job, step, write)
        _note(log, "save")

    Job.progress, Job.save = told, saved  # type: ignore[method-assign]


def _note(log: Path, what: str) -> None:
    with open(log, "a") as file:
        file.write(f"{what}\n")


def torn(store: Store) -> str | None:
    """What a reader of this store could see that is not whole, or None."""
    for key in [*store.list("artifacts"), *store.list("savepoints")]:
        home, _, name = key.rpartition("/")
        if not (
            name == "manifest.json" or (key.startswith("savepoints/") and key.count("/") == 3 and key.endswith(".json"))
        ):
            continue
        bound = key.removeprefix("artifacts/").removesuffix("/manifest.json").removesuffix(".json")
        with contextlib.suppress(NotFound):
            found = read_manifest(store.backend, key, bound)
            if problem := altered(store.backend, found, f"{home}/{found.attempt}"):
                return problem
    return None


def undisturbed(stage: Stage, finished: Store, home: Path, outcome: Outcome) -> list[Point]:
    """Run the stage once, counting; returns every point at which it can be killed."""
    notes = home.with_suffix(".events")

    def note(role: str, what: str, path: str) -> None:
        with open(notes, "a") as file:
            file.write(f"{role}\n")

    store, log = with_inputs(stage, finished, home), home.with_suffix(".steps")
    log.touch()
    assert attempt(stage, store, log, Counter(None, note)) == 0, f"{stage.label} fails without being killed"
    check(stage, store, finished, outcome, "undisturbed")
    lines = log.read_text().split()
    stretches = " ".join(lines).split("save")
    outcome.longest, outcome.saves = max(s.split().count("step") for s in stretches), len(stretches) - 1
    points: list[Point] = []
    for role in notes.read_text().split():
        outcome.points[role] = outcome.points.get(role, 0) + 1
        points.append((role, outcome.points[role]))
    return points


def check(stage: Stage, store: Store, finished: Store, outcome: Outcome, where: str) -> None:
    """The result has the bytes of the finished campaign's."""
    made, wanted = store.manifest(stage.ref), finished.manifest(stage.ref)
    assert wanted is not None
    if made is None or made.root != wanted.root:
        outcome.failures.append(f"{where}: root {made and made.root}, want {wanted.root}")
    elif problem := altered(store.backend, made, f"artifacts/{stage.ref.key}/{made.attempt}"):
        outcome.failures.append(f"{where}: {problem}")
    if left := [key for key in store.list("savepoints") if key.endswith(".json")]:
        outcome.failures.append(f"{where}: save points are left: {left[0]}")


def kill(stage: Stage, finished: Store, home: Path, point: Point, steps: int, outcome: Outcome) -> None:
    """Run the stage, killed at a point; look; run it again; look again."""
    where, log = f"{point[0]} {point[1]}", home.with_suffix(".steps")
    store = with_inputs(stage, finished, home)
    log.touch()
    code = attempt(stage, store, log, Counter(point))
    if code == 0:
        outcome.missed += 1
        return
    outcome.tried[point[0]] = outcome.tried.get(point[0], 0) + 1
    if code != (-9 if point[0] == "parent" else FAILED):
        outcome.failures.append(f"{where}: the parent ended with {code}")
    if problem := torn(store):
        outcome.failures.append(f"{where}: {problem}")
    if again := attempt(stage, store, log, Counter(None)):
        outcome.failures.append(f"{where}: the second run ended with {again}")
    check(stage, store, finished, outcome, where)
    repeated = log.read_text().split().count("step") - steps
    outcome.repeated = max(outcome.repeated, repeated)
    if repeated > outcome.longest:
        outcome.failures.append(f"{where}: {repeated} steps repeated, at most {outcome.longest} may be")


def examine(stage: Stage, finished: Store, folder: Path, sample: int | None, part: int = 0, parts: int = 1) -> Outcome:
    """Kill one stage at its points: every `parts`-th of them from `part` on, or at so many drawn from all."""
    outcome, began = Outcome(stage.label, stage.work, part), time.monotonic()
    first = folder / "undisturbed"
    points = undisturbed(stage, finished, first, outcome)
    steps = first.with_suffix(".steps").read_text().split().count("step")
    if sample is not None:
        points = random.Random(stage.label).sample(points, min(sample, len(points)))
    for number, point in enumerate(points[part::parts]):
        home = folder / f"kill{number}"
        kill(stage, finished, home, point, steps, outcome)
        shutil.rmtree(home)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="*", help="labels of stages")
    parser.add_argument("--sample", type=int, help="only so many points a stage, drawn from all")
    parser.add_argument("--parts", type=int, default=1, help="lines a stage")
    parser.add_argument("--seconds", type=float, default=400.0, help="begin no further part after this time")
    options = parser.parse_args()
    options.results.touch()
    lines = [json.loads(line) for line in options.results.read_text().splitlines()]
    done = {(line["label"], line["part"]) for line in lines}
    began, bad = time.monotonic(), 0
    forkserver.preload()
    with tempfile.TemporaryDirectory(dir=os.environ.get("ROUNDHOUSE_SCRATCH")) as scratch:
        run = campaign(Path(scratch) / "finished")
        for part, label in itertools.product(range(options.parts), options.only or run.artifacts):
            if (label, part) in done or time.monotonic() - began > options.seconds:
                continue
            home = Path(scratch) / f"{label}-{part}"
            home.mkdir()
            outcome = examine(run.artifacts[label].stage, run.store, home, options.sample, part, options.parts)
            with options.results.open("a") as file:
                file.write(json.dumps(vars(outcome)) + "\n")
            print(json.dumps(vars(outcome)), flush=True)
            bad += bool(outcome.failures)
            shutil.rmtree(home)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
