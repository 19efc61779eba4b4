"""A project folder's services as facts: where their files lie, which ports, which settings, which secrets.

Everything lies in `<root>/.roundhouse/` (mode 0700) and in `<root>/prefect.toml`, which lets the bare `prefect`
command find the server from the project folder. Secrets are generated there, 0600, never put on a command line.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PORT = 4200
DEFAULT_S3_PORT = 4280
BUCKET = "roundhouse"
TOML_HEADER = "# Written by `roundhouse up`, removed by `roundhouse down`. Holds a secret.\n"


class ServiceError(RuntimeError):
    """A service did not come up or cannot be used; the message says which, why and what to do."""


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ServiceError(f"{variable}={text!r} is not a port: give a number from 1 to 65535")
    return int(text)


@dataclass(frozen=True)
class Site:
    """A project folder and the ports of its services."""

    root: Path = field(default_factory=lambda: Path(__file__).resolve().parents[1])
    port: int = field(default_factory=lambda: _port("ROUNDHOUSE_PORT", DEFAULT_PORT))
    s3_port: int = field(default_factory=lambda: _port("ROUNDHOUSE_S3_PORT", DEFAULT_S3_PORT))

    @property
    def state(self) -> Path:
        return self.root / ".roundhouse"

    @property
    def toml(self) -> Path:
        return self.root / "prefect.toml"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def s3_url(self) -> str:
        return f"http://127.0.0.1:{self.s3_port}"


def environment(site: Site) -> dict[str, str]:
    """Prefect's settings for server, worker and clients of this folder, as environment variables.

    Why each is there: docs/running.md.
    """
    auth = _secret(site.state / "auth", lambda: "roundhouse:" + secrets.token_urlsafe(24))
    return {
        "PREFECT_API_URL": site.url,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_HOME": str(site.state / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(site.port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{site.port},http://localhost:{site.port}",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "DO_NOT_TRACK": "1",
        "ROUNDHOUSE_DEVICE_LIMITS": "1",  # stages take the limits that `up` has created
    }


def s3_environment(site: Site) -> dict[str, str]:
    """What a client of this folder's S3 server needs in its environment; also written to `.roundhouse/s3.env`."""
    access, secret = s3_keys(site).split(",")
    client = {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": site.s3_url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "ROUNDHOUSE_STORE": f"s3://{BUCKET}/store",
    }
    write_private(site.state / "s3.env", "".join(f"export {key}={value}\n" for key, value in client.items()))
    return client


def s3_keys(site: Site) -> str:
    """ "access,secret" of the S3 server, made on first use: 20 and 40 random hex digits."""
    return _secret(site.state / "s3.keys", lambda: f"{secrets.token_hex(10)},{secrets.token_hex(20)}")


def write_toml(site: Site) -> None:
    """Let the bare `prefect` command find the server: it reads prefect.toml in the current folder."""
    if site.toml.exists() and not site.toml.read_text().startswith(TOML_HEADER):
        raise ServiceError(
            f"{site.toml} is not ours: move it away, `roundhouse up` writes one with the server's address"
        )
    env = environment(site)
    auth = env["PREFECT_API_AUTH_STRING"]
    text = f'home = "{env["PREFECT_HOME"]}"\n\n[api]\nurl = "{site.url}"\nauth_string = "{auth}"\n'
    write_private(site.toml, TOML_HEADER + text + "\n[flows]\nheartbeat_frequency = 30\n")


def worker_name() -> str:
    return f"roundhouse-{socket.gethostname()}"


def _secret(path: Path, make: Callable[[], str]) -> str:
    """The one line in `path`, made on first use; the file is created 0600 and never overwritten."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(make() + "\n")
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    os.replace(draft, path)
