"""Whole campaigns on a Prefect server, killed at random moments: in the end every file has the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.prefect
@pytest.mark.parametrize(
    ("mode", "kills"), [pytest.param("local", 3, marks=pytest.mark.slow_short), ("deployed", 6), ("local", 12)]
)
def test_killed_at_random_moments(mode: str, kills: int, tmp_path: Path, tally) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.campaigns", str(tmp_path), "--mode", mode]
    done = subprocess.run([*command, "--kills", str(kills)], cwd=ROOT, capture_output=True, text=True, timeout=590)
    campaigns = [json.loads(line) for line in (tmp_path / f"{mode}.jsonl").read_text().splitlines()]
    assert done.returncode == 0, (campaigns, done.stderr[-2000:])
    assert all(campaign["same"] and not campaign["problem"] for campaign in campaigns)
    count = sum(len(campaign["kills"]) for campaign in campaigns)
    assert count >= kills
    tally(f"random kills of campaigns, {mode} (a sample)", count, f"{len(campaigns)} campaigns alike")
