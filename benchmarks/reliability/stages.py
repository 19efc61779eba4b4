"""A stage of every kind, killed with SIGKILL at its step boundaries and file operations, in the parent and in the child.

`python -m benchmarks.reliability.stages FOLDER [--only KINDS] [--steps N] [--others N] [--seconds S]` adds a line for each
kill to FOLDER/kills.jsonl and one for each stage to FOLDER/stages.jsonl; what is there already is not done again, so that
it can be ended at any time and called again. The other points come in a seeded order, one stage after another.

A stage's inputs are committed (hard links to a finished campaign's), the rest of the store is empty. One process does
`tasks.stage.produce`, its child the work, as in a run; both are forks of this one, which has everything imported. What
is counted: file operations of the parent, of the child, and steps (the child's calls of `Job.progress`).

Save points are counted in steps; with `--overlapped` they are due by time, after every step, and may be stored beside the
next one. Then the step whose save point was being stored may be repeated as well. (Its files are overlapped-kills.jsonl and
overlapped-stages.jsonl.)
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter as Counts
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import storage.lease
from benchmarks.reliability.events import Counter, in_child, watch
from benchmarks.reliability.forks import Fork
from benchmarks.reliability.kinds import CHOSEN, everything
from configs import load
from engine import forkserver
from engine.job import Job
from storage import Store, open_store
from storage.attempt import altered, read_manifest
from storage.errors import NotFound
from storage.gc import sweep
from storage.lease import current_epoch
from tasks import launch
from tasks.launch import StageFailed
from tasks.stage import Stage, produce

COUNTED = {"save_steps": 2}  # steps between save points; the campaign's own 4 leave some stages without any
OVERLAPPED = {"save_steps": 0, "save_seconds": 1e-9}
LEASE_TTL = 1.0  # seconds; nobody is frozen here
FAILED = 3  # exit code of a parent whose child died
Point = tuple[str, int]


@dataclass(frozen=True)
class Shape:
    """What an undisturbed run of a stage does.

    points: by role, how many there are. longest: the most steps between two save points, hence the most that a kill may
    make it repeat.
    """

    work: str
    points: dict[str, int]
    steps: int
    saves: int
    longest: int

    def chosen(self, steps: int, others: int) -> list[Point]:
        """So many steps, the first of all, and so many other points in an order drawn by the kind."""
        rest = [(role, n + 1) for role in ("parent", "child") for n in range(self.points.get(role, 0))]
        random.Random(self.work).shuffle(rest)
        return [("step", n + 1) for n in range(self.points.get("step", 0))][:steps] + rest[:others]


@dataclass
class Kill:
    """One kill and what came of it."""

    work: str
    role: str
    number: int
    killed: bool = True  # False: the process did not come to this point
    repeated: int = 0
    failures: list[str] = field(default_factory=list)


def with_inputs(stage: Stage, finished: Store, home: Path) -> Store:
    """A new store that holds the stage's inputs and nothing else."""
    assert finished.backend.folder is not None
    for ref in set(stage.input_refs()):
        source = finished.backend.folder / "artifacts" / ref.key
        shutil.copytree(source, home / "artifacts" / ref.key, copy_function=os.link, dirs_exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    return open_store(home)


def attempt(
    stage: Stage,
    store: Store,
    log: Path,
    counter: Counter,
    *,
    saving: Mapping[str, float] = COUNTED,
    elsewhere: bool = False,
) -> int:
    """Produce the stage in a fork whose events are counted; returns the exit code. Steps and saves are lines of `log`.

    saving: when a save point is due, as the runtime says it.
    elsewhere: as a process of another machine, which cannot see that the holder of a lease has ended and waits its time.
    """

    def work() -> None:
        parent = os.getpid()
        if elsewhere:
            storage.lease._place = lambda: "another machine"
        watch(
            store.backend.folder or Path(),
            lambda what, path: counter.happened("parent" if os.getpid() == parent else "child", what, path),
        )
        _watch_steps(log, lambda: counter.happened("step", "step"))
        launch.use(Fork)
        runtime = load("micro").runtime.model_copy(update={**saving, "lease_ttl": LEASE_TTL})
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


def shape_of(work: str, log: Path, points: dict[str, int]) -> Shape:
    """The shape that the log of an undisturbed run tells."""
    stretches = log.read_text().split("save")
    longest = max(stretch.count("step") for stretch in stretches)
    return Shape(work, points, points.get("step", 0), len(stretches) - 1, longest)


def undisturbed(stage: Stage, finished: Store, home: Path, saving: Mapping[str, float]) -> Shape:
    """Run the stage once, counting."""
    notes, log = home.with_suffix(".events"), home.with_suffix(".steps")
    store = with_inputs(stage, finished, home)
    for path in (notes, log):
        path.touch()
    counter = Counter(None, lambda role, what, path: _note(notes, role))
    assert attempt(stage, store, log, counter, saving=saving) == 0, stage.label
    assert not (wrong := problems(stage, store, finished)), wrong
    return shape_of(stage.work, log, dict(Counts(notes.read_text().split())))


def epoch_of(stage: Stage, store: Store) -> int:
    """The last epoch of the stage's lease, 0 if it was never taken."""
    return current_epoch(store.backend, stage.ref.key)


def problems(stage: Stage, store: Store, finished: Store, dead: int = 0) -> list[str]:
    """In what the stage's result differs from the finished campaign's, and what is left behind after a sweep.

    dead: the epoch of a killed holder, who gives nothing back; whoever came later must.
    """
    found = []
    made, wanted = store.manifest(stage.ref), finished.manifest(stage.ref)
    assert wanted is not None
    if made is None or made.root != wanted.root:
        return [f"root {made and made.root}, want {wanted.root}"]
    if problem := altered(store.backend, made, f"artifacts/{stage.ref.key}/{made.attempt}"):
        found.append(problem)
    if left := [key for key in store.list("savepoints") if key.endswith(".json")]:
        found.append(f"save points are left: {left[0]}")
    epoch = epoch_of(stage, store)
    if epoch > dead and not store.get(f"beats/{stage.ref.key}/{epoch:06d}.txt").startswith(b"released"):
        found.append(f"the lease was not given back: epoch {epoch}, {dead} was that of a killed holder")
    store.put_alias("kept", stage.ref)
    sweep(store, dry_run=False, grace=-2.0)
    assert store.backend.folder is not None
    left = sorted(path.name for path in (store.backend.folder / "artifacts" / stage.ref.key).iterdir())
    if left != sorted([made.attempt, "manifest.json"]):
        found.append(f"left by a sweep: {left}")
    parts = [path for top in ("artifacts", "savepoints", "trash") for path in (store.backend.folder / top).rglob(".*")]
    if parts or store.list("trash") or (again := store.manifest(stage.ref)) is None or again.root != made.root:
        found.append(f"after a sweep: {parts}, {store.list('trash')}, {store.manifest(stage.ref)}")
    return found


def kill(stage: Stage, finished: Store, home: Path, point: Point, shape: Shape, saving: Mapping[str, float]) -> Kill:
    """Run the stage, killed at a point; look; run it again; look again."""
    outcome, log = Kill(stage.work, *point), home.with_suffix(".steps")
    store = with_inputs(stage, finished, home)
    log.touch()
    code = attempt(stage, store, log, Counter(point), saving=saving)
    if code == 0:
        outcome.killed = False
        return outcome
    if code != (-9 if point[0] == "parent" else FAILED):
        outcome.failures.append(f"the parent ended with {code}")
    if problem := torn(store):
        outcome.failures.append(problem)
    dead = epoch_of(stage, store)
    if again := attempt(stage, store, log, Counter(None), saving=saving):
        outcome.failures.append(f"the second run ended with {again}")
    outcome.failures += problems(stage, store, finished, dead)
    outcome.repeated = log.read_text().split().count("step") - shape.steps
    most = 2 * shape.longest if saving is OVERLAPPED else shape.longest
    if outcome.repeated > most:
        outcome.failures.append(f"{outcome.repeated} steps repeated, at most {most} may be")
    return outcome


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, line: object) -> None:
    """Append the fields of a dataclass as a JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(vars(line)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=sorted(CHOSEN), help="kinds of stages")
    parser.add_argument("--steps", type=int, default=10**6, help="only so many step boundaries a stage")
    parser.add_argument("--others", type=int, default=10**6, help="only so many other points a stage")
    parser.add_argument("--seconds", type=float, default=10**6, help="begin no further kill after this time")
    parser.add_argument("--overlapped", action="store_true", help="save points due by time, stored beside the work")
    options = parser.parse_args()
    saving, kept = (OVERLAPPED, "overlapped-") if options.overlapped else (COUNTED, "")
    began, folder = time.monotonic(), options.folder
    kills, forms = folder / f"{kept}kills.jsonl", folder / f"{kept}stages.jsonl"
    (folder / "finished").mkdir(parents=True, exist_ok=True)
    forkserver.preload()
    finished, stages = everything(folder / "finished")
    done = {(line["work"], line["role"], line["number"]) for line in lines(kills)}
    shapes = {line["work"]: Shape(**line) for line in lines(forms)}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for work in options.only:
            if work not in shapes:
                shapes[work] = undisturbed(stages[work], finished, Path(scratch) / work, saving)
                add(forms, shapes[work])
        chosen = [
            [(work, *point) for point in shapes[work].chosen(options.steps, options.others)] for work in options.only
        ]
        for work, role, number in (one for turn in itertools.zip_longest(*chosen) for one in turn if one is not None):
            if (work, role, number) in done or time.monotonic() - began > options.seconds:
                continue
            home = Path(scratch) / "kill"
            add(kills, kill(stages[work], finished, home, (role, number), shapes[work], saving))
            shutil.rmtree(home)
            home.with_suffix(".steps").unlink()
    return 1 if any(line["failures"] for line in lines(kills)) else 0


if __name__ == "__main__":
    sys.exit(main())
