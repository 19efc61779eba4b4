"""What a run is doing: bars with rates in a terminal, a line a stage elsewhere."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from report.quantities import duration, size

Event = Mapping[str, Any]
SHOWN_METRICS = ("loss", "accuracy", "score", "kl")  # at most two of these stand beside a bar


class Progress:
    """Listens to a run's events: `hear(label, event)` may be called from any thread.

    In a terminal each stage at work has a bar with done/total, rate and time left, and one bar counts the stages; lines
    of the stages' log stand above. Elsewhere: one line when a stage ends and one for each line of its log.
    """

    def __init__(self, name: str, labels: Sequence[str], stream: TextIO | None = None) -> None:
        self.name, self.labels = name, list(labels)
        self._stream = stream or sys.stdout
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._ended: set[str] = set()
        self._reused = 0
        self._began = time.monotonic()
        self._bars: dict[str, TaskID] = {}
        line = Column(no_wrap=True)
        note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        name_column = TextColumn("{task.description}", style="bold", table_column=line)
        self._stages = Bars(
            name_column, BarColumn(16), _Amount(line), _Rate(line), _Left(line), note, console=self._console
        )
        stages = TextColumn("{task.completed:.0f}/{task.total:.0f} stages", table_column=line)
        self._whole = Bars(TextColumn("{task.description}"), BarColumn(16), stages, _Elapsed(), console=self._console)
        self._all = self._whole.add_task(name, total=max(1, len(self.labels)))
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            grid = Table.grid()
            grid.add_row(self._stages)
            grid.add_row(self._whole)
            self._live = Live(grid, console=self._console, refresh_per_second=5, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        took = duration(time.monotonic() - self._began)
        self._say(
            f"{self.name}: {len(self._ended)} stages in {took}"
            + (f", {self._reused} of them reused" if self._reused else "")
        )

    def hear(self, label: str, event: Event) -> None:
        """Take one event of a stage."""
        kind = event.get("event")
        with self._lock:
            if kind == "progress":
                self._advance(label, event)
            elif kind == "metrics":
                self._note(label, event)
            elif kind == "log":
                self._say(f"{label}: {event['text']}")
            elif kind == "made":
                self._end(label)
                self._say(stage_done_line(label, event))
            elif kind == "cached":
                self._reused += label not in self._ended
                self._end(label)

    def _advance(self, label: str, event: Event) -> None:
        if label in self._ended:  # a late line of a stage that has ended must not bring its bar back
            return
        if label not in self._bars:
            self._bars[label] = self._stages.add_task(
                label, total=event["total"], unit=event.get("unit", "step"), note=""
            )
        self._stages.update(self._bars[label], completed=event["done"], total=event["total"])

    def _note(self, label: str, event: Event) -> None:
        if label in self._bars:
            known = [name for name in SHOWN_METRICS if isinstance(event.get(name), int | float)][:2]
            self._stages.update(self._bars[label], note="  ".join(f"{name} {event[name]:.3g}" for name in known))

    def _end(self, label: str) -> None:
        if label in self._bars:
            self._stages.remove_task(self._bars.pop(label))
        if label not in self._ended:
            self._ended.add(label)
            if label not in self.labels:  # a stage that the plan could not foresee
                self.labels.append(label)
            self._whole.update(self._all, completed=len(self._ended), total=len(self.labels))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)


def stage_done_line(label: str, event: Event) -> str:
    """`r2-sample  3.2 s  1.4 MB` of a stage that has ended."""
    return f"{label:<18} {duration(event['seconds']):>9}  {size(event['bytes']):>8}"


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f} {task.fields['unit']}s")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{duration(left)} left", style="dim")


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(duration(task.elapsed or 0.0), style="dim")
