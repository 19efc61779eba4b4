"""Every state of the store in which a kill could leave a stage, and the stage produced from each of them.

`python -m benchmarks.reliability.states FOLDER [--only KINDS] [--seconds S]` runs a stage of each kind once and copies the
store before every file operation and at every step: what a reader would find if parent and child had died there, as when
a host loses its power. States with the same bytes are one (most operations read). From each distinct one the stage is
produced again: it must have the root of an undisturbed one, repeat at most one save interval, and leave nothing behind.
Every third is taken up as by another machine, which cannot see that the holder of the lease is dead and waits its time.

FOLDER/states.jsonl gets a line for each kind when all its states were tried; kinds that have one are not done again.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter as Counts
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.events import Counter
from benchmarks.reliability.kinds import CHOSEN, everything
from benchmarks.reliability.stages import add, attempt, epoch_of, lines, problems, shape_of, torn, with_inputs
from engine import forkserver
from storage import Store, open_store
from storage.names import BESIDE, sha256_file
from tasks.stage import Stage

ELSEWHERE = 3  # every so many states


@dataclass
class Outcome:
    """What came of the states of one kind of stage.

    points: by role, how many events there were, each of which left one of the states. tried: distinct states produced
    from, `elsewhere` of them as by another machine. allowed: steps that a kill may make it repeat.
    """

    work: str
    points: dict[str, int]
    tried: int
    elsewhere: int
    repeated: int
    allowed: int
    failures: list[str]


class Camera:
    """Copies a folder before each event unless nothing has changed since the last; one at a time over all forks.

    `fixed`: folders that nobody changes; they are in no copy.
    """

    def __init__(self, folder: Path, album: Path, fixed: list[Path], log: Path) -> None:
        self.folder, self.album, self.fixed, self.log = folder, album, {str(path) for path in fixed}, log
        self._busy, self._lock = threading.local(), threading.Lock()
        album.mkdir()

    def shoot(self, role: str, what: str, path: str) -> None:
        """One more event is about to happen."""
        if getattr(self._busy, "yes", False):
            return
        self._busy.yes = True
        try:
            with self._alone():
                facts, files = self._look()
                taken = lines(self.album / "taken.jsonl")
                number = taken[-1]["number"] if taken else 0
                if not taken or taken[-1]["facts"] != facts:
                    number += 1
                    self._copy(files, self.album / str(number))
                line = {"number": number, "facts": facts, "role": role, "what": what, "steps": self._steps()}
                with (self.album / "taken.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
        finally:
            self._busy.yes = False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock, (self.album.with_suffix(".lock")).open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # a lock of the process, and let go of when it dies
            yield

    def _steps(self) -> int:
        return self.log.read_text().split().count("step")

    def _look(self) -> tuple[str, list[Path]]:
        """What tells one state from the next, and its files. What lies beside a result (logs, curves) tells nothing."""
        facts, files = [], []
        for parent, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if f"{parent}/{name}" not in self.fixed)
            facts.append(parent)
            for name in sorted(names):
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):
                    found = path.lstat()
                    files.append(path)
                    if BESIDE not in path.parts:
                        facts.append(f"{path} {found.st_ino} {found.st_size} {found.st_mtime_ns}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest(), files

    def _copy(self, files: list[Path], to: Path) -> None:
        to.mkdir()
        for parent, folders, _ in os.walk(self.folder):
            folders[:] = [name for name in folders if f"{parent}/{name}" not in self.fixed]
            (to / os.path.relpath(parent, self.folder)).mkdir(parents=True, exist_ok=True)
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path, to / path.relative_to(self.folder))


def bytes_of(state: Path) -> str:
    """Tells states apart: names and bytes of all files and folders, but for what lies beside a result."""
    known = []
    for path in sorted(state.rglob("*")):
        if BESIDE not in path.parts:
            known.append(f"{path.relative_to(state)} {sha256_file(path) if path.is_file() else ''}")
    return hashlib.sha256("\n".join(known).encode()).hexdigest()


def photographed(stage: Stage, finished: Store, home: Path) -> tuple[Path, list[tuple[int, int]], Outcome]:
    """Run the stage once; returns the album, the number and the steps done of each distinct state, and an outcome to fill."""
    album, log = home.with_suffix(".album"), home.with_suffix(".steps")
    log.touch()
    store = with_inputs(stage, finished, home)
    folder = store.backend.folder
    assert folder is not None
    fixed = [folder / "artifacts" / ref.key for ref in stage.input_refs()]
    camera = Camera(folder, album, fixed, log)
    assert attempt(stage, store, log, Counter(None, camera.shoot)) == 0, stage.label
    taken = lines(album / "taken.jsonl")
    shape = shape_of(stage.work, log, dict(Counts(line["role"] for line in taken)))
    assert not (wrong := problems(stage, store, finished)), wrong
    distinct: dict[str, tuple[int, int]] = {}
    known: dict[int, str] = {}
    for line in taken:  # of equal states the one with the most steps done counts: it may lose the most
        number = line["number"]
        known[number] = known.get(number) or bytes_of(album / str(number))
        distinct[known[number]] = (number, line["steps"])
    return album, list(distinct.values()), Outcome(stage.work, shape.points, 0, 0, 0, shape.longest, [])


def recover(stage: Stage, finished: Store, state: Path, home: Path, outcome: Outcome, steps: tuple[int, int]) -> None:
    """Produce the stage from one state. steps: those done when it was taken, and those of an undisturbed run."""
    with_inputs(stage, finished, home)
    shutil.copytree(state, home, dirs_exist_ok=True)
    store, log = open_store(home), home.with_suffix(".steps")
    log.touch()
    elsewhere, dead = outcome.tried % ELSEWHERE == 0, epoch_of(stage, store)
    found = [problem] if (problem := torn(store)) else []
    if code := attempt(stage, store, log, Counter(None), elsewhere=elsewhere):
        found.append(f"it ended with {code}")
    found += problems(stage, store, finished, dead)
    repeated = steps[0] + log.read_text().split().count("step") - steps[1]
    if repeated > outcome.allowed:
        found.append(f"{repeated} steps repeated, at most {outcome.allowed} may be")
    outcome.tried += 1
    outcome.elsewhere += elsewhere
    outcome.repeated = max(outcome.repeated, repeated)
    outcome.failures += [f"state {state.name}: {text}" for text in found]
    shutil.rmtree(home)
    log.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=sorted(CHOSEN), help="kinds of stages")
    parser.add_argument("--sample", type=int, default=1, help="only each so-manieth state")
    parser.add_argument("--seconds", type=float, default=10**6, help="begin no further kind after this time")
    options = parser.parse_args()
    began, folder = time.monotonic(), options.folder
    (folder / "finished").mkdir(parents=True, exist_ok=True)
    forkserver.preload()
    finished, stages = everything(folder / "finished")
    done = {line["work"] for line in lines(folder / "states.jsonl")}
    for work in options.only:
        if work in done or time.monotonic() - began > options.seconds:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            album, states, outcome = photographed(stages[work], finished, Path(scratch) / "first")
            total = outcome.points.get("step", 0)
            for number, steps in states[:: options.sample]:
                home = Path(scratch) / "again"
                recover(stages[work], finished, album / str(number), home, outcome, (steps, total))
        add(folder / "states.jsonl", outcome)
        print(json.dumps(vars(outcome)), flush=True)
    return 1 if any(line["failures"] for line in lines(folder / "states.jsonl")) else 0


if __name__ == "__main__":
    sys.exit(main())
