"""Real S3 servers on loopback, for the tests of every room (fixtures `rclone`, `moto`, `s3_server`)."""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "round-house"


@dataclass(frozen=True)
class Server:
    """A running S3 server with one empty bucket; `env` is what a client process needs."""

    name: str
    endpoint: str
    conditional: bool
    env: dict[str, str] = field(repr=False)
    folder: Path | None = None  # where rclone keeps the objects

    def url(self) -> str:
        """Return a store URL that nobody has used."""
        return f"s3://{BUCKET}/{secrets.token_hex(6)}"

    def through(self, endpoint: str) -> dict[str, str]:
        """Return `env` for a client that talks to a proxy in front of this server."""
        return {**self.env, "AWS_ENDPOINT_URL_S3": endpoint}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves no server behind


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=_die_with_parent)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _env(port: int, key: str, secret: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def rclone_server(folder: Path) -> Iterator[Server]:
    """Serve `folder` over S3: checks credentials, ignores If-None-Match."""
    port, key, secret = free_port(), "ROUNDHOUSETESTKEY", secrets.token_hex(16)
    data = folder / "data"
    (data / BUCKET).mkdir(parents=True)
    beside_python = Path(sys.executable).with_name("rclone")
    binary = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    command = [binary, "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    with _running([*command, "--config", ""], port, folder / "rclone.log"):
        yield Server("rclone", f"http://127.0.0.1:{port}", False, _env(port, key, secret), data)


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[Server]:
    """Run moto's server: honours If-None-Match, checks no credentials, keeps everything in memory."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, folder / "moto.log"):
        server = Server("moto", f"http://127.0.0.1:{port}", True, _env(port, "ROUNDHOUSETESTKEY", "unchecked"))
        make_bucket(server)
        yield server


def make_bucket(server: Server) -> None:
    """Create the bucket with one unsigned request; moto asks for no more."""
    import urllib.request

    request = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


@pytest.fixture(scope="session")
def rclone(tmp_path_factory):
    """A running `rclone serve s3`."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """A running moto server."""
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def s3_server(request, monkeypatch):
    """An S3 server whose settings are in this process's environment; parametrize indirectly with "rclone" or "moto"."""
    server = request.getfixturevalue(getattr(request, "param", "rclone"))
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return server


@pytest.fixture
def tally():
    """A function that records what a check has tried, for docs/reliability.md; zero cases fail.

    `tally(check, tried, note="")` prints the line and, if ROUNDHOUSE_TALLY names a file, appends it there.
    """

    def record(check: str, tried: int, note: str = "") -> None:
        assert tried > 0, f"{check}: nothing was tried"
        print(f"{check}: {tried} {note}")
        if path := os.environ.get("ROUNDHOUSE_TALLY"):
            with open(path, "a") as file:
                file.write(json.dumps({"check": check, "tried": tried, "note": note}) + "\n")

    return record
