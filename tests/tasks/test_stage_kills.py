"""Killed at a file operation or a step, in the parent or in the child, a stage ends with the same bytes all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "demonstrations": "ingest", "base": "pretrain", "v0": "train", "r1-annotate": "annotate", "r1-helpfulness": "reward",
    "r1-probe": "probe", "r1-sample": "sample", "r1-score": "score", "r1-select": "select", "v2": "online",
    "v2-evaluate": "evaluate", "compare": "compare",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.slow_short
def test_every_kind_of_stage_survives_kills(tmp_path: Path, tally) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.stages", str(tmp_path), "--sample", "1"]
    done = subprocess.run([*command, "--only", *KINDS], cwd=ROOT, capture_output=True, text=True, timeout=550)
    kills, stages = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("kills.jsonl", "stages.jsonl")
    )
    assert done.returncode == 0, (done.stderr[-2000:], [kill for kill in kills if kill["failures"]])
    assert {stage["label"]: stage["work"] for stage in stages} == KINDS
    assert sum(kill["killed"] for kill in kills) == len(KINDS)
    tally("killed in a stage of each kind (a sample)", len(kills), f"{len(KINDS)} kinds")
