"""Killed at a file operation or a step, in the parent or in the child, a stage ends with the same bytes all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.kinds import CHOSEN

ROOT = Path(__file__).resolve().parents[2]


pytestmark = [pytest.mark.slow, pytest.mark.slow_short]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undisturbed stages are kept, which are made once."""
    return tmp_path_factory.mktemp("kept")


def test_every_kind_of_stage_survives_kills(kept: Path, tally) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.stages", str(kept), "--steps", "0", "--others", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    kills = [json.loads(line) for line in (kept / "kills.jsonl").read_text().splitlines()]
    assert done.returncode == 0, (done.stderr[-2000:], [kill for kill in kills if kill["failures"]])
    assert {kill["work"] for kill in kills} == set(CHOSEN) and all(kill["killed"] for kill in kills)
    tally("killed in a stage of each kind (a sample)", len(kills), f"{len(CHOSEN)} kinds")


def test_every_state_that_a_kill_can_leave_is_taken_up(kept: Path, tally) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.states", str(kept), "--only", "train", "--sample", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    (found,) = [json.loads(line) for line in (kept / "states.jsonl").read_text().splitlines()]
    assert done.returncode == 0 and found["failures"] == [], (done.stderr[-2000:], found)
    assert found["tried"] > 10 and found["elsewhere"] > 3 and 0 < found["repeated"] <= found["allowed"]
    tally("produced from a state that a kill can leave (a sample)", found["tried"], "training")
