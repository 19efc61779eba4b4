import io
import threading

import pytest

from cli.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_one_line_when_a_stage_ends() -> None:
    out = io.StringIO()
    with Progress("tiny", ["base", "v0", "v1"], stream=out) as progress:
        progress.hear("base", {"event": "cached", "seconds": 9.0, "bytes": 10, "key": "k"})
        for done in range(1, 101):
            progress.hear("v0", {"event": "progress", "done": done, "total": 100, "unit": "step"})
            progress.hear("v0", {"event": "metrics", "step": done, "loss": 1.0})
        progress.hear("v0", {"event": "log", "text": "continues from save point 12"})
        progress.hear("v0", {"event": "made", "seconds": 3.21, "bytes": 1_400_000, "key": "k"})
    lines = out.getvalue().splitlines()
    assert lines[0] == "v0: continues from save point 12"
    assert lines[1].split() == ["v0", "3.2", "s", "1.4", "MB"]
    assert lines[2].startswith("tiny: 2 stages in") and lines[2].endswith("1 of them reused") and len(lines) == 3
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_a_bar_for_each_stage_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress("tiny", ["r1-helpfulness", "r1-safety"], stream=out) as progress:
        for label in ("r1-helpfulness", "r1-safety"):
            progress.hear(label, {"event": "progress", "done": 1, "total": 40, "unit": "step"})
        progress.hear("r1-safety", {"event": "progress", "done": 20, "total": 40, "unit": "step"})
        progress.hear("r1-safety", {"event": "metrics", "step": 20, "loss": 0.5432, "accuracy": 0.7})
        assert progress._live is not None
        progress._live.refresh()
    shown = out.getvalue()
    assert "r1-helpfulness" in shown and "20/40 steps" in shown and "loss 0.543" in shown and "0/2 stages" in shown


def test_a_late_event_does_not_bring_a_finished_stage_back() -> None:
    progress = Progress("tiny", ["a"], stream=io.StringIO())
    progress.hear("a", {"event": "progress", "done": 1, "total": 2})
    progress.hear("a", {"event": "made", "seconds": 1.0, "bytes": 1, "key": "k"})
    progress.hear("a", {"event": "progress", "done": 2, "total": 2})
    assert progress._stages.tasks == [] and progress._whole.tasks[0].completed == 1


def test_events_may_come_from_many_threads() -> None:
    labels = [f"s{i}" for i in range(16)]
    progress = Progress("tiny", labels, stream=io.StringIO())

    def work(label: str) -> None:
        for done in range(50):
            progress.hear(label, {"event": "progress", "done": done, "total": 50})
        progress.hear(label, {"event": "made", "seconds": 1.0, "bytes": 1, "key": "k"})

    threads = [threading.Thread(target=work, args=(label,)) for label in labels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress._whole.tasks[0].completed == 16 and progress._stages.tasks == []
