"""Stages run in processes of their own, report what happened to them, and never outlive their asker."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tasks import launch
from tasks.launch import StageFailed, StageStopped, run_stage


def _spec(**recipe: object) -> dict[str, object]:
    return {
        "stage": "no-such-stage",
        "label": "probe",
        "recipe": recipe,
        "inputs": {},
        "store": "x",
        "ref": "x",
        "out": "x",
    }


def _gone(pid: int, within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_failed_work_is_told_in_one_line_without_traceback(tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        run_stage(_spec(), log=tmp_path / "log", listen=lambda event: None, stop=lambda: None, timeout=60)
    assert str(caught.value).startswith("probe: ") and "\n" not in str(caught.value)
    assert "Traceback" in (tmp_path / "log").read_text()


WORK = """
    import os, sys, time
    from pathlib import Path
    from tasks import launch
    import threading
    pids = Path(sys.argv[1])
    spec = {"stage": "x", "label": "sleeper"}
    launch.ROOT = Path(sys.argv[2])  # where a replacement of engine.run sleeps
    launch.warm_up()
    running, output = launch._server.start(spec)
    while running.pid is None:
        time.sleep(0.01)
    pids.write_text(f"{running.pid} {launch._server.process.pid}")
    time.sleep(600)
"""

SLEEPER = """
import subprocess, sys, time
RECIPES = {}
def main(spec):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Path:
    """A copy of the fork server whose stages only sleep, with a grandchild."""
    engine = tmp_path / "project" / "engine"
    engine.mkdir(parents=True)
    (engine / "__init__.py").write_text("")
    (engine / "run.py").write_text(SLEEPER)
    source = (launch.ROOT / "engine" / "forkserver.py").read_text()
    (engine / "forkserver.py").write_text(source.replace("    preload()\n", ""))
    return engine.parent


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_asker_dies(tmp_path: Path, sleeper: Path, sign: signal.Signals) -> None:
    pids = tmp_path / "pids"
    asker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORK), str(pids), str(sleeper)],
        cwd=launch.ROOT,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    end = time.monotonic() + 30
    while not (pids.exists() and pids.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    stage, server = map(int, pids.read_text().split())
    time.sleep(0.3)
    group = subprocess.run(["ps", "-o", "pid=", "-s", str(stage)], capture_output=True, text=True).stdout.split()
    assert len(group) >= 2, "the stage and its own child should be in one session"
    os.kill(asker.pid, sign)
    asker.wait(60)
    assert all(_gone(int(pid)) for pid in [*group, str(server)])


def test_stop_ends_the_stage_and_says_why(tmp_path: Path, sleeper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch.stop_all()
    monkeypatch.setattr(launch, "ROOT", sleeper)
    try:
        began = time.monotonic()
        with pytest.raises(StageStopped, match="probe: enough"):
            run_stage(_spec(), log=tmp_path / "log", listen=lambda event: None, stop=lambda: "enough", timeout=60)
        assert time.monotonic() - began < 20
    finally:
        launch.stop_all()
