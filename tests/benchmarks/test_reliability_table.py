"""benchmarks.reliability: the table counts what was kept, and what was never run fails."""

import json
from pathlib import Path

from benchmarks.reliability.__main__ import GOALS, table


def _fill(folder: Path, failures: list[str], same: bool) -> None:
    (folder / "stages").mkdir()
    shape = {"label": "v0", "work": "train", "points": {"child": 9, "step": 2}, "steps": 2, "saves": 1, "longest": 1}
    (folder / "stages" / "stages.jsonl").write_text(json.dumps(shape) + "\n")
    kill = {"label": "v0", "role": "child", "number": 3, "killed": True, "repeated": 1, "failures": failures}
    missed = {**kill, "number": 4, "killed": False}
    (folder / "stages" / "kills.jsonl").write_text(json.dumps(kill) + "\n" + json.dumps(missed) + "\n")
    campaign = {"kills": [["worker", 1.0], ["stage", 2.0]], "same": same, "problem": ""}
    for mode in ("deployed", "local"):
        (folder / f"{mode}.jsonl").write_text(json.dumps(campaign) + "\n")
    others = [name for name in GOALS if not name.startswith(("stage killed", "campaign: killed"))]
    tallies = [json.dumps({"check": name, "tried": 5, "note": ""}) for name in others]
    (folder / "test_x.tally").write_text("\n".join(tallies) + "\n")
    counts = {"tests": 3, "failures": 0, "errors": 0, "skipped": 1, "seconds": 60.0}
    (folder / "test_x.json").write_text(json.dumps(counts))


def test_what_ended_well_is_counted(tmp_path: Path) -> None:
    _fill(tmp_path, [], True)
    text, good = table(tmp_path)
    assert good
    assert "| stage killed at: train | 1 | 0 | 1 of 9 child, 0 of 2 step; at most 1 steps repeated, 1 allowed |" in text
    assert "1 stage, 1 worker; 1 campaigns, 1 with the undisturbed root" in text
    assert "3 tests in 1 minutes: 0 failed, 1 skipped" in text


def test_a_failure_anywhere_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, ["another root"], False)
    text, good = table(tmp_path)
    assert not good
    assert "| stage killed at: train | 1 | 1 |" in text and "1 campaigns, 0 with" in text


def test_what_was_never_run_or_tried_nothing_fails(tmp_path: Path) -> None:
    text, good = table(tmp_path)
    assert not good and text.count("| 0 | not run |") == len(GOALS)
