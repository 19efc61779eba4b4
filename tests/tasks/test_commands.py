"""Malformed files through the real command line: one clear line each, and a code that says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = [pytest.param(5, marks=pytest.mark.slow_short), 50]
pytestmark = pytest.mark.slow


def drive(kind: str, folder: Path, count: int, **env: str) -> dict[str, int]:
    """Exit code -> calls."""
    command = [sys.executable, "-m", "benchmarks.reliability.command_line", kind, str(folder), str(count)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=2000)
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bad"] == [] and done.returncode == 0
    return found["exit"]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["configs", "rows", "parquet", "manifests", "savepoints"])
def test_malformed_files(kind: str, count: int, tmp_path: Path, tally) -> None:
    codes = drive(kind, tmp_path, count)
    tally(f"command line: malformed {kind}", sum(codes.values()), f"exit codes {codes}")
    assert sum(codes.values()) == count


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone"], indirect=True)
def test_mutated_answers(s3_server, tmp_path: Path, tally) -> None:
    import random

    from faultproxy import Proxy

    from benchmarks.reliability.mutate import mutated_bytes

    draw = random.Random(36)
    with Proxy(s3_server.endpoint, lambda *_: "mutate" if draw.random() < 0.1 else None) as proxy:
        proxy.mutate = lambda body: mutated_bytes(body, draw)
        env = {**s3_server.through(proxy.endpoint), "ROUNDHOUSE_STORE": s3_server.url()}
        codes = drive("answers", tmp_path, 50, **env)
    tally("command line: mutated answers", sum(codes.values()), f"{proxy.faults['mutate']} answers mutated")
    assert proxy.faults["mutate"] > 50
