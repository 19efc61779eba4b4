"""The server of one run is private, and gone with its process however that ends."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import sys, time, urllib.error, urllib.request
from pathlib import Path
from cli import embedded
from cli.site import Site
root = Path(sys.argv[1])
place = embedded.choose(Site(root, 1, 2))
with embedded.server(place):
    (root / "url").write_text(place.env["PREFECT_API_URL"] + " " + str(place.home))
    from prefect import flow
    @flow(persist_result=False)
    def f():
        return 3
    assert f() == 3
    (root / "ready").write_text("")
    if sys.argv[2] == "hang":
        time.sleep(600)
"""


def program(root: Path, mode: str) -> "subprocess.Popen[str]":
    root.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    command = [sys.executable, "-c", PROGRAM, str(root), mode]
    return subprocess.Popen(command, env=env, cwd=root, stderr=subprocess.PIPE, text=True)


def servers(root: Path) -> list[psutil.Process]:
    """Every process that keeps its Prefect home under `root`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME", "").startswith(str(root)) and "uvicorn" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.slow_short
@pytest.mark.prefect
def test_a_killed_run_leaves_no_server_behind(tmp_path: Path) -> None:
    with program(tmp_path, "hang") as started:
        try:
            _kill_when_ready(started, tmp_path)
        finally:
            started.kill()
    deadline = time.monotonic() + 20
    while servers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not servers(tmp_path)
    # The database of the killed run is taken up again, and a run that ends by itself leaves nothing either.
    again = program(tmp_path, "end")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert not servers(tmp_path)


def _kill_when_ready(started: "subprocess.Popen[str]", tmp_path: Path) -> None:
    while not (tmp_path / "ready").exists():
        assert started.poll() is None, started.stderr.read() if started.stderr else ""
        time.sleep(0.1)
    url, home = (tmp_path / "url").read_text().split()
    assert servers(tmp_path) and home == str(tmp_path / ".roundhouse" / "embedded")
    request = urllib.request.Request(f"{url}/flow_runs/count", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    started.send_signal(signal.SIGKILL)


def test_a_second_run_at_the_same_time_gets_a_database_of_its_own(tmp_path: Path) -> None:
    from cli.embedded import _home
    from cli.site import Site

    site = Site(tmp_path, 1, 2)
    site.state.mkdir()
    first, second = _home(site), _home(site)
    assert first == site.state / "embedded" and second != first and second.is_dir()
