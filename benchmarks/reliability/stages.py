"""Every stage of the micro campaign, killed at its file operations and step boundaries, in the parent and in the child.

`python -m benchmarks.reliability.stages FOLDER [--only LABELS] [--sample N] [--seconds S]` adds a line for each kill to
FOLDER/kills.jsonl and one for each stage to FOLDER/stages.jsonl; what is there already is not done again, so that it can
be ended at any time and called again. Steps come first, then the other points in a seeded order, one stage after another.

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
from collections import Counter as Counts
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


@dataclass(frozen=True)
class Shape:
    """What an undisturbed run of a stage does.

    points: by role, how many there are. longest: the most steps between two save points, hence the most that a kill may
    make it repeat.
    """

    label: str
    work: str
    points: dict[str, int]
    steps: int
    saves: int
    longest: int

    def all(self) -> list[Point]:
        """Every point: the steps first, then the others in an order drawn by the label."""
        steps = [("step", number + 1) for number in range(self.points.get("step", 0))]
        rest = [(role, n + 1) for role in ("parent", "child") for n in range(self.points.get(role, 0))]
        random.Random(self.label).shuffle(rest)
        return steps + rest


@dataclass
class Kill:
    """One kill and what came of it."""

    label: str
    role: str
    number: int
    killed: bool = True  # False: the process did not come to this point
    repeated: int = 0
    failures: list[str] = field(default_factory=list)


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


def undisturbed(stage: Stage, finished: Store, home: Path) -> Shape:
    """Run the stage once, counting."""
    notes, log = home.with_suffix(".events"), home.with_suffix(".steps")
    store = with_inputs(stage, finished, home)
    for path in (notes, log):
        path.touch()
    assert attempt(stage, store, log, Counter(None, lambda role, what, path: _note(notes, role))) == 0, stage.label
    assert not (wrong := problems(stage, store, finished)), wrong
    points = dict(Counts(notes.read_text().split()))
    stretches = log.read_text().split("save")
    longest = max(stretch.count("step") for stretch in stretches)
    return Shape(stage.label, stage.work, points, points.get("step", 0), len(stretches) - 1, longest)


def problems(stage: Stage, store: Store, finished: Store) -> list[str]:
    """In what the stage's result differs from the finished campaign's, and what it has left behind."""
    found = []
    made, wanted = store.manifest(stage.ref), finished.manifest(stage.ref)
    assert wanted is not None
    if made is None or made.root != wanted.root:
        found.append(f"root {made and made.root}, want {wanted.root}")
    elif problem := altered(store.backend, made, f"artifacts/{stage.ref.key}/{made.attempt}"):
        found.append(problem)
    if left := [key for key in store.list("savepoints") if key.endswith(".json")]:
        found.append(f"save points are left: {left[0]}")
    return found


def kill(stage: Stage, finished: Store, home: Path, point: Point, shape: Shape) -> Kill:
    """Run the stage, killed at a point; look; run it again; look again."""
    outcome, log = Kill(stage.label, *point), home.with_suffix(".steps")
    store = with_inputs(stage, finished, home)
    log.touch()
    code = attempt(stage, store, log, Counter(point))
    if code == 0:
        outcome.killed = False
        return outcome
    if code != (-9 if point[0] == "parent" else FAILED):
        outcome.failures.append(f"the parent ended with {code}")
    if problem := torn(store):
        outcome.failures.append(problem)
    if again := attempt(stage, store, log, Counter(None)):
        outcome.failures.append(f"the second run ended with {again}")
    outcome.failures += problems(stage, store, finished)
    outcome.repeated = log.read_text().split().count("step") - shape.steps
    if outcome.repeated > shape.longest:
        outcome.failures.append(f"{outcome.repeated} steps repeated, at most {shape.longest} may be")
    return outcome


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _add(path: Path, line: Shape | Kill) -> None:
    with path.open("a") as file:
        file.write(json.dumps(vars(line)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="labels of stages")
    parser.add_argument("--sample", type=int, default=10**6, help="only so many points a stage")
    parser.add_argument("--seconds", type=float, default=10**6, help="begin no further kill after this time")
    options = parser.parse_args()
    began, folder = time.monotonic(), options.folder
    (folder / "finished").mkdir(parents=True, exist_ok=True)
    forkserver.preload()
    run = campaign(folder / "finished")
    done = {(line["label"], line["role"], line["number"]) for line in _lines(folder / "kills.jsonl")}
    shapes = {line["label"]: Shape(**line) for line in _lines(folder / "stages.jsonl")}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for label in options.only or run.artifacts:
            if label not in shapes:
                shapes[label] = undisturbed(run.artifacts[label].stage, run.store, Path(scratch) / label)
                _add(folder / "stages.jsonl", shapes[label])
        chosen = [
            [(label, *point) for point in shapes[label].all()[: options.sample]]
            for label in options.only or run.artifacts
        ]
        queue = [entry for turn in itertools.zip_longest(*chosen) for entry in turn if entry is not None]
        for label, role, number in queue:
            if (label, role, number) in done or time.monotonic() - began > options.seconds:
                continue
            home = Path(scratch) / "kill"
            outcome = kill(run.artifacts[label].stage, run.store, home, (role, number), shapes[label])
            _add(folder / "kills.jsonl", outcome)
            shutil.rmtree(home)
            home.with_suffix(".steps").unlink()
    return 1 if any(line["failures"] for line in _lines(folder / "kills.jsonl")) else 0


if __name__ == "__main__":
    sys.exit(main())
