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
    command = [sys.executable, "-m", "benchmarks.reliability.stages", str(tmp_path / "results"), "--sample", "2"]
    done = subprocess.run([*command, "--only", *KINDS], cwd=ROOT, capture_output=True, text=True, timeout=550)
    outcomes = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert done.returncode == 0, (done.stderr[-2000:], [outcome["failures"] for outcome in outcomes])
    assert {outcome["label"]: outcome["work"] for outcome in outcomes} == KINDS
    tried = sum(sum(outcome["tried"].values()) for outcome in outcomes)
    assert tried == 2 * len(KINDS) and not any(outcome["missed"] for outcome in outcomes)
    tally("killed in a stage of each kind (a sample)", tried, f"{len(KINDS)} kinds")
