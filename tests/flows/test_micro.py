"""The whole campaign of configs/micro.yaml, every kind of stage, on real stores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import Server

from configs import load
from flows.rounds import align
from storage import Store, open_store
from tasks import Run
from tasks.launch import StageFailed, stop_all

ROOT = Path(__file__).resolve().parents[2]


def _align(store: Store, mode: str = "direct") -> Run:
    campaign = load("micro")
    run = Run(campaign, store, campaign.runtime, mode=mode)  # type: ignore[arg-type]
    align(run)
    return run


def _roots(run: Run) -> dict[str, str]:
    made = {label: artifact.made() for label, artifact in run.artifacts.items()}
    return {label: m.manifest.root for label, m in made.items() if m is not None}


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The campaign run once, on a folder."""
    return _align(open_store(tmp_path_factory.mktemp("micro") / "store"))


def test_every_stage_is_made(micro: Run) -> None:
    assert len(_roots(micro)) == len(micro.artifacts) >= 19
    table = json.loads((micro.store.fetch(micro.artifacts["compare"].ref) / "table.json").read_text())
    text = json.dumps(table)
    assert all(f'"{version}"' in text for version in ("base", "v0", "v1", "v2"))


def test_again_nothing_is_computed(micro: Run) -> None:
    began = time.monotonic()
    again = _align(open_store(micro.store.url), "plan")
    assert time.monotonic() - began < 5
    assert _roots(again) == _roots(micro)


def test_versions_load_with_plain_transformers(micro: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for label, artifact in micro.versions.items():
        folder = micro.store.fetch(artifact.ref)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size >= len(tokenizer), label
        assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.slow
def test_killed_in_every_training_stage_the_bytes_are_the_same(micro: Run, tmp_path: Path) -> None:
    """The child is killed after its first save point, once in each stage that saves; the run goes on at the next call."""
    store = open_store(tmp_path / "store")
    campaign = load("micro")
    killed: set[str] = set()

    def kill_at_save(label: str, event: dict[str, object]) -> None:
        if event["event"] == "saved" and label not in killed:
            killed.add(label)
            for pid in _stage_processes():
                os.kill(pid, signal.SIGKILL)

    for _ in range(40):
        run = Run(campaign, store, campaign.runtime, mode="direct", listen=kill_at_save)
        try:
            align(run)
            break
        except StageFailed as error:
            assert "signal 9" in str(error)
    assert len(killed) >= 5, killed
    assert _roots(run) == _roots(micro)


def _stage_processes() -> list[int]:
    """The forks of this process's warm server."""
    from tasks import launch

    assert launch._server is not None
    return [running.pid for running in launch._server.running.values() if running.pid]


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone", "moto"], indirect=True)
def test_s3_gives_the_same_bytes_as_a_folder(micro: Run, s3_server: Server) -> None:
    stop_all()  # the warm server keeps the environment it was started with
    try:
        assert _roots(_align(open_store(s3_server.url()))) == _roots(micro)
    finally:
        stop_all()


@pytest.mark.prefect
def test_command_line_runs_it_through_prefect_and_the_second_time_does_nothing(tmp_path: Path, micro: Run) -> None:
    environment = {**os.environ, "ROUNDHOUSE_STORE": (tmp_path / "store").as_uri()}
    command = [sys.executable, "-m", "cli", "run", "micro"]
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "report: file://" in first.stdout
    began = time.monotonic()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert time.monotonic() - began < 20
    assert _roots(_align(open_store(tmp_path / "store"), "plan")) == _roots(micro)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run", "no-such-config"], "no config 'no-such-config'"),
        (["run", "micro", "--store", "ftp://x/y"], "store"),
        (["run", "micro", "--store", "/proc/nowhere"], "/proc/nowhere"),
        (["chat", "micro", "v9"], "no version 'v9'"),
        (["explain", "micro", "r9-sample"], "no stage 'r9-sample'"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments: list[str], wanted: str, tmp_path: Path) -> None:
    environment = {**os.environ, "ROUNDHOUSE_STORE": (tmp_path / "store").as_uri()}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and wanted in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
