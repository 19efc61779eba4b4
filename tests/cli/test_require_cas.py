"""`--require-cas` and `runtime.require_cas`: a store that ignores create-only writes is refused before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server

ROOT = Path(__file__).resolve().parents[2]


def roundhouse(server: Server, *words: str) -> "subprocess.CompletedProcess[str]":
    """`roundhouse WORDS` on an unused place of the server, with nothing else in the environment that concerns us."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "ROUNDHOUSE_"))}
    command = [sys.executable, "-m", "cli", *words]
    return subprocess.run(command, cwd=ROOT, env=env | server.env, capture_output=True, text=True, timeout=300)


@pytest.mark.s3
def test_a_run_on_a_store_without_conditions_is_refused_in_one_line(rclone: Server) -> None:
    url = rclone.url()
    done = roundhouse(rclone, "run", "micro", "--store", url, "--require-cas")
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = [line for line in done.stderr.splitlines() if " INFO " not in line]  # that a library found credentials
    assert line.startswith(f"error: {url}: the store ignores create-only writes") and "leave out --require-cas" in line
    assert rclone.folder is not None and not list((rclone.folder / url.removeprefix("s3://")).rglob("artifacts/*"))


@pytest.mark.s3
@pytest.mark.parametrize(("s3_server", "code"), [("rclone", 2), ("moto", 0)], indirect=["s3_server"])
def test_the_runtime_can_ask_for_it(s3_server: Server, code: int, tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text("require_cas: true\n")
    words = ("plan", "micro", "--store", s3_server.url(), "--runtime", str(tmp_path / "strict.yaml"))
    done = roundhouse(s3_server, *words)
    assert done.returncode == code, done
    assert ("ignores create-only writes" in done.stderr) == (code == 2) == (not s3_server.conditional)
