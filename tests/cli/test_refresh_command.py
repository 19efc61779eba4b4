"""`roundhouse refresh` without a server: the follow-up is done in the same process, once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.names import seal, unseal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "flows"))
from refreshes import House, shore

ROOT = Path(__file__).resolve().parents[2]


def refresh(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "refresh", str(house.root / "refresh.yaml"), "--store", house.store, *words]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {"COLUMNS": "250"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.prefect
def test_it_refreshes_says_so_and_follows_up_here(tmp_path: Path) -> None:
    house = House(tmp_path, [])
    house.align()
    house.put("a.jsonl", shore()[:50])
    first = refresh(house)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "r1 " in first.stdout and "nothing new" not in first.stdout and "model/continuing-" in first.stdout
    (path,) = (tmp_path / "store/refreshes").rglob("r0001.json")  # as if the decision had been another
    path.write_bytes(seal(unseal(path.read_bytes()) | {"action": "short-sft"}))
    for _ in range(2):
        again = refresh(house)
        assert again.returncode == 0 and "nothing new" in again.stdout, again.stdout + again.stderr
        assert "in the refresh's own process" in again.stdout
    made = [p for p in (tmp_path / "store/campaigns").rglob("*.json") if b'"r1-short-sft"' in p.read_bytes()]
    assert made


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("no-such-refresh", "no config 'no-such-refresh'"),
        ("micro", "micro: campaign is missing; a refresh names the campaign"),
    ],
)
def test_a_bad_config_is_one_line_and_status_two(config: str, wanted: str, tmp_path: Path) -> None:
    env = {**os.environ, "ROUNDHOUSE_STORE": (tmp_path / "store").as_uri()}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "refresh", config], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and wanted in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_the_schedule_takes_three_words() -> None:
    done = subprocess.run([sys.executable, "-m", "cli", "schedule", "yes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "want on, off or show" in done.stderr
