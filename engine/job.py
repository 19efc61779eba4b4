"""What a stage's work sees: its recipe, its inputs as local folders, a folder to write results to, and save points."""

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.runtime import Runtime
from storage import SavePoint, SavePoints


@dataclass
class Job:
    """One stage's work. Only what is written under `out` (and not under `out/_beside`) is the result.

    recipe: the stage's recipe, a frozen model of configs.recipes.
    inputs: role -> local folder, or list of folders where the role takes many; verified before the work starts.
    """

    stage: str
    recipe: Any  # each stage has a recipe type of its own
    inputs: Mapping[str, Path | list[Path]]
    out: Path
    runtime: Runtime
    saves: SavePoints | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)  # what the job was opened from, for processes that share it
    rows: list[dict[str, Any]] = field(default_factory=list)  # metric rows so far
    elsewhere: list[Mapping[str, Any]] = field(default_factory=list)  # the events that ended this stage's replicas
    _last_save: float = field(default_factory=time.monotonic)  # when its snapshot was taken
    _last_progress: float = 0.0
    _ticks: list[tuple[int, float, float]] = field(default_factory=list)  # first and last: done, CPU and wall seconds
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "save point"))
    _pending: Future[tuple[int, float]] | None = None  # a save point that is being stored: its step, its seconds
    _writing: float = 0.0  # seconds that storing the last one took
    _paused: list[float] = field(default_factory=list)  # seconds for which each save point held up the work

    def folder(self, role: str) -> Path:
        """The one folder of an input."""
        found = self.inputs[role]
        assert isinstance(found, Path), f"input {role} of {self.stage} is a list"
        return found

    def folders(self, role: str) -> list[Path]:
        """The folders of an input that may be many, oldest first; empty if the input is not given."""
        found = self.inputs.get(role, [])
        return [found] if isinstance(found, Path) else list(found)

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        """Tell how far the work is; cheap to call at every step."""
        now = time.monotonic()
        self._ticks = [*self._ticks[:1], (done, time.process_time(), now)]
        if done >= total or now - self._last_progress > 0.5:
            self._last_progress = now
            self._say(event="progress", done=done, total=total, unit=unit)

    def pace(self) -> dict[str, float] | None:
        """Processor and wall seconds between the first and the last word on progress, and what was done between them."""
        if len(self._ticks) < 2 or self._ticks[1][0] <= self._ticks[0][0]:
            return None
        done, cpu, seconds = (last - first for first, last in zip(*self._ticks))
        return {"done": done, "cpu_seconds": cpu, "seconds": seconds, "of": self._ticks[1][0]}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record one row of the training curve. Results only: never times, rates or hosts (those go to `timing`)."""
        row = {"step": step, **{k: float(v) for k, v in values.items()}}
        self.rows.append(row)
        self._say(event="metrics", **row)

    def shard(self, number: int, counts: Mapping[str, int], files: Sequence[str]) -> None:
        """Tell whoever shares the stage out that one of its shards is finished."""
        self._say(event="shard", number=number, counts=dict(counts), files=list(files))

    def log(self, text: str) -> None:
        """One line for the people who watch the run."""
        self._say(event="log", text=text)

    def timing(self, name: str, seconds: float) -> None:
        """Wall time of a part of the work; kept beside the result."""
        self._say(event="timing", name=name, seconds=seconds)

    def resume(self) -> SavePoint | None:
        """The last good save point, with the metric rows up to it; None to begin at the beginning."""
        point = self.saves.latest() if self.saves else None
        if point is not None:
            curve = point.path / "metrics.jsonl"
            self.rows = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
            self.log(f"continues from save point {point.step}")
        return point

    def should_save(self, step: int) -> bool:
        """Whether a save point is due after this step. By time, it is due so early that it is stored when
        `save_seconds` are over: no more work than that is ever at risk.

        Raises:
            what the last save point's writing raised.
        """
        if self.saves is None:
            return False
        if self._pending is not None and self._pending.done():
            self._settle()
        if self.runtime.save_steps:
            return step % self.runtime.save_steps == 0
        patience = self.runtime.save_seconds - min(self._writing, self.runtime.save_seconds / 2)
        return time.monotonic() - self._last_save > patience

    def save(self, step: int, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Make a save point: `write(folder)` puts safetensors/JSON/Parquet files there and returns the JSON record.

        The files are the snapshot; hashing, storing and reading them back goes on beside the work, one save point at a
        time. Where save points are counted in steps (`save_steps`) it is waited for, so that never more than these are
        repeated.
        """
        assert self.saves is not None
        began = time.monotonic()
        self._settle()
        folder = self.saves.folder()
        record = copy.deepcopy(
            {**write(folder), "numerics": self.runtime.numerics(), "inputs": self.spec.get("inputs", {})}
        )  # counters go on counting
        self._write_rows(folder / "metrics.jsonl", self.rows)
        self._last_save = time.monotonic()
        self._pending = self._writer.submit(self._store, self.saves, step, folder, record)
        if self.runtime.save_steps:
            self._settle()
        self._paused.append(time.monotonic() - began)

    @staticmethod
    def _store(saves: SavePoints, step: int, folder: Path, record: dict[str, Any]) -> tuple[int, float]:
        began = time.monotonic()
        saves.save(step, folder, record)
        return step, time.monotonic() - began

    def _settle(self) -> None:
        """Wait for the save point that is being stored, if there is one; raise what its writing raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            step, self._writing = pending.result()
            self._say(event="saved", step=step)

    def close(self) -> None:
        """Leave nothing half stored, also where the work has failed: what it began is whole or has raised."""
        try:
            self._settle()
        finally:
            self._writer.shutdown()

    def finish(self) -> None:
        """Write the curve among the results, with no save point pending."""
        self.close()
        if self._paused:
            self.timing("saves", sum(self._paused))
        if self.rows:
            self._write_rows(self.out / "metrics.jsonl", self.rows)

    @staticmethod
    def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))

    def _say(self, **event: Any) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
