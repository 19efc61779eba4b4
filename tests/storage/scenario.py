"""A stage in miniature, for the tests that kill it: lease, save points, artifact, note, clean-up."""

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from benchmarks.reliability.events import in_child, watch
from storage import Ref, open_store
from storage.attempt import altered, read_manifest
from storage.errors import NotFound, StorageError

SERVERS = [pytest.param("rclone", marks=pytest.mark.s3), pytest.param("moto", marks=pytest.mark.s3)]
on_a_folder = pytest.mark.parametrize("store_url", ["folder"], indirect=True)


def over(name: str, kinds: list):
    """Parametrize a test: every kind on a folder, and the first two each on one S3 server."""
    rest = [pytest.param(*server.values, kind, marks=server.marks) for server, kind in zip(SERVERS, kinds)]
    return pytest.mark.parametrize(("store_url", name), [("folder", k) for k in kinds] + rest, indirect=["store_url"])


REF = Ref("sft", "v0", "0123456789abcdef")
CAMPAIGN = ("tiny", "fedcba9876543210")
STEPS, INTERVAL, PATIENCE = 6, 2, 5


__all__ = ["in_child"]  # used by the tests of this room


def advance(state: str, step: int) -> str:
    return hashlib.sha256(f"{state}/{step}".encode()).hexdigest()


def run_stage(url, cache, log: Path, ttl: float = 90.0) -> None:
    """Make the artifact, or go on with it; every step computed is a line in `log`."""
    with open_store(url, cache=cache) as store:
        record = store.campaign(*CAMPAIGN)
        record.create({"seed": 1})
        if store.manifest(REF) is None:
            lease = store.lease(REF.key, ttl=ttl, until=lambda: store.manifest(REF) is not None)
            if lease is not None:
                with lease:
                    if store.manifest(REF) is None:
                        compute(store, lease, log)
        record.note("v0", REF)
        store.save_points(REF).drop()


def compute(store, lease, log: Path) -> None:
    points = store.save_points(REF, lease)
    state, step = "start", 0
    if (found := points.latest()) is not None:
        state, step = json.loads((found.path / "state.json").read_text())["state"], found.step
        assert found.record == {"rng": state}
    if lease.begin(step) > PATIENCE:
        raise StorageError(f"{PATIENCE} holders in a row died at step {step}: no progress")
    while step < STEPS:
        lease.check()
        state = advance(state, step)
        step += 1
        with open(log, "a") as file:
            file.write(f"{step}\n")
        if step % INTERVAL == 0 and step < STEPS:
            folder = points.folder()
            (folder / "state.json").write_text(json.dumps({"state": state}))
            (folder / "big.json").write_text(state * 100)
            points.save(step, folder, {"rng": state})
    draft = store.draft(REF)
    (draft.path / "model.json").write_text(state * 100)
    (draft.path / "shards").mkdir()
    (draft.path / "shards" / "0.json").write_text(state)
    (draft.path / "_beside").mkdir()
    (draft.path / "_beside" / "log.txt").write_text(str(os.getpid()))
    draft.commit({"steps": step}, lease)


def expected_root() -> str:
    """The root that an undisturbed stage has, worked out without a store."""
    state = "start"
    for step in range(STEPS):
        state = advance(state, step)
    files = {"model.json": state * 100, "shards/0.json": state}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_nothing_torn(store) -> int:
    """Assert that whatever a reader could see is whole; return how many manifests that was."""
    seen = 0
    for key in [*store.list("artifacts"), *store.list("savepoints")]:
        name = key.rpartition("/")[2]
        if name == "manifest.json":
            bound, home = key.removeprefix("artifacts/").removesuffix("/manifest.json"), key.rpartition("/")[0]
        elif key.startswith("savepoints/") and key.count("/") == 3 and name.endswith(".json"):
            bound, home = key.removesuffix(".json"), key.rpartition("/")[0]
        else:
            continue
        try:
            manifest = read_manifest(store.backend, key, bound)
        except NotFound:
            continue
        if manifest.record.get("steps") is not None or name != "manifest.json":
            assert altered(store.backend, manifest, f"{home}/{manifest.attempt}") is None, key
        seen += 1
    return seen


def die_at(root: Path, count: int, on_event=None) -> None:
    """From now on, kill this process before its file operation number `count` under `root`."""
    seen = 0

    def happened(what: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if on_event is not None:
            on_event(what)
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(root, happened)
