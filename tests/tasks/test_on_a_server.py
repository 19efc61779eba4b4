"""Around a real Prefect server: its database lost, a run's host lost, and secrets that must turn up nowhere."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.reliability.campaigns import project
from cli import daemon, services
from cli.site import Site, environment
from storage import open_store

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 2000.0  # seconds, on a machine that does other work
SETTINGS = {  # of the environment; the S3 server's own secret comes from its fixture
    "HF_TOKEN": "planted-of-the-hub-0123456789",
    "WANDB_API_KEY": "planted-of-a-tracker-0123456789",
    "AWS_SESSION_TOKEN": "planted-session-0123456789",
}
HOLDERS = ("auth", "prefect.toml", "s3.env")  # files that are there to hold a secret, readable by their owner alone

pytestmark = [pytest.mark.slow, pytest.mark.prefect]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with project(tmp_path_factory.mktemp("project")) as made:
        yield made


def roundhouse(site: Site, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """`roundhouse WORDS` against the site's server, with every logger of Prefect at DEBUG."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "ROUNDHOUSE_"))}
    env |= environment(site) | {"PREFECT_LOGGING_LEVEL": "DEBUG", "ROUNDHOUSE_CACHE": str(site.root / "cache")} | more
    command = [sys.executable, "-m", "cli", *words]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL
    )


def deployed(site: Site, **parameters: str) -> Any:
    """A new run of the deployment."""
    with services.client(site) as client:
        deployment = client.read_deployment_by_name("llama2-style/iterative")
        return client.create_flow_run_from_deployment(
            deployment.id, parameters={"config": "micro", "until": "v0", **parameters}
        )


def await_state(site: Site, run: Any, *names: str) -> float:
    """Wait for one of these states; returns the seconds that it took."""
    began = time.monotonic()
    while True:
        with services.client(site) as client:
            found = client.read_flow_run(run.id)
        if found.state_name in names:
            return time.monotonic() - began
        assert time.monotonic() - began < LIMIT and not found.state.is_final(), found.state
        time.sleep(0.5)


def test_a_lost_database_costs_no_stage(site: Site, tmp_path: Path, tally) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    store = tmp_path / "store"
    done = roundhouse(site, "run", "micro", "--until", "v0", "--store", store.as_uri())
    assert done.returncode == 0, done.stderr[-2000:]
    before = open_store(store).list("artifacts")
    services.down(site, say=lambda line: None)
    shutil.rmtree(site.state / "prefect")
    services.up(site, say=lambda line: None)
    run = deployed(site, store=store.as_uri())
    await_state(site, run, "Completed")
    with services.client(site) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), limit=200)
    assert len(found) >= 7 and {task.state_name for task in found} == {"Cached"}
    assert open_store(store).list("artifacts") == before
    tally("results found after the Prefect database was deleted", len(found), "all found in the store, none computed")


def test_a_run_whose_host_died_is_crashed_by_the_server(site: Site, tmp_path: Path, tally) -> None:
    run = deployed(site, store=(tmp_path / "store").as_uri())
    await_state(site, run, "Running")
    with services.client(site) as client:
        flow = psutil.Process(int(client.read_flow_run(run.id).infrastructure_pid or 0))
    worker = daemon.find(site.state, "worker")
    assert worker is not None
    lost = psutil.Process(worker.pid)
    lost.suspend()  # a host that loses its power reports nothing
    flow.kill()
    lost.kill()
    seconds = await_state(site, run, "Crashed")
    services.up(site, say=lambda line: None)
    again = roundhouse(site, "run", "micro", "--until", "v0", "--store", (tmp_path / "store").as_uri())
    assert again.returncode == 0, again.stderr[-2000:]
    tally("run of a dead host found out by the server", 1, f"Crashed after {seconds:.0f} s, 120 s without a heartbeat")
    assert seconds < 240


def holding(root: Path, secret: str) -> list[str]:
    """The files under a folder in which a secret stands."""
    found = []
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.name in HOLDERS:
            continue
        if secret.encode() in path.read_bytes() or secret in path.name:
            found.append(str(path))
    return found


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone"], indirect=True)
def test_planted_secrets_turn_up_nowhere(site: Site, s3_server, tmp_path: Path, tally) -> None:
    """A good run and one whose stage fails with a secret in its message, both with the loggers at DEBUG."""
    secrets = {**SETTINGS, "AWS_SECRET_ACCESS_KEY": s3_server.env["AWS_SECRET_ACCESS_KEY"]}
    env = {**s3_server.env, **SETTINGS}
    del env["AWS_SESSION_TOKEN"]  # the server knows no sessions; the token is planted in the second run
    good = roundhouse(site, "run", "micro", "--until", "v0", "--store", s3_server.url(), **env)
    assert good.returncode == 0, good.stderr[-2000:]
    secret_folder = tmp_path / secrets["HF_TOKEN"]
    secret_folder.mkdir()
    (secret_folder / "bad.jsonl").write_text(json.dumps({secrets["HF_TOKEN"]: "Hi"}) + "\n")  # the error names columns
    config = (ROOT / "configs" / "micro.yaml").read_text().replace("{world: prompts, count: 80}", "{path: bad.jsonl}")
    (tmp_path / "bad.yaml").write_text(config)
    more = {**env, "ROUNDHOUSE_DATA": str(secret_folder), "AWS_SESSION_TOKEN": SETTINGS["AWS_SESSION_TOKEN"]}
    url = (tmp_path / "store").as_uri()
    bad = roundhouse(site, "run", str(tmp_path / "bad.yaml"), "--until", "v0", "--store", url, **more)
    assert bad.returncode != 0 and "the row has [redacted]" in bad.stderr, bad.stderr[-2000:]
    said = good.stdout + good.stderr + bad.stdout + bad.stderr
    secrets["PREFECT_API_AUTH_STRING"] = environment(site)["PREFECT_API_AUTH_STRING"]
    assert s3_server.folder is not None
    places = [site.root, s3_server.folder, tmp_path / "store"]
    for name, secret in secrets.items():
        assert secret not in said, name
        assert [file for place in places for file in holding(place, secret)] == [], name
    files = sum(path.is_file() for place in places for path in place.rglob("*"))
    tally(
        "planted secrets", len(secrets), f"looked for in {files} files (results, logs, the server's database), output"
    )
