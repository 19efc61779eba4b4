"""What a stage's work sees: its recipe, its inputs as local folders, a folder to write results to, and save points."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
    rows: list[dict[str, Any]] = field(default_factory=list)  # metric rows so far
    _last_save: float = field(default_factory=time.monotonic)
    _last_progress: float = 0.0

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
        if done >= total or now - self._last_progress > 0.5:
            self._last_progress = now
            self._say(event="progress", done=done, total=total, unit=unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record one row of the training curve. Results only: never times, rates or hosts (those go to `timing`)."""
        row = {"step": step, **{k: float(v) for k, v in values.items()}}
        self.rows.append(row)
        self._say(event="metrics", **row)

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
        """Whether a save point is due after this step."""
        if self.saves is None:
            return False
        if self.runtime.save_steps:
            return step % self.runtime.save_steps == 0
        return time.monotonic() - self._last_save > self.runtime.save_seconds

    def save(self, step: int, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Make a save point: `write(folder)` puts safetensors/JSON/Parquet files there and returns the JSON record."""
        assert self.saves is not None
        folder = self.saves.folder()
        record = {**write(folder), "numerics": self.runtime.numerics()}
        self._write_rows(folder / "metrics.jsonl", self.rows)
        self.saves.save(step, folder, record)
        self._last_save = time.monotonic()
        self._say(event="saved", step=step)

    def finish(self) -> None:
        """Write the curve among the results."""
        if self.rows:
            self._write_rows(self.out / "metrics.jsonl", self.rows)

    @staticmethod
    def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))

    def _say(self, **event: Any) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
