"""Stages on a local Ray cluster of three nodes with one CPU each: same bytes as on one machine, whatever is lost.

    python -m pip install 'ray==2.60.0' && python -m pytest -m slow tests/engine/test_cluster.py

Where Ray is not installed these tests are skipped, and counted as such.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_workers import alone, ended, files, sample_spec, start, until
from test_zero import spec, store  # noqa: F401  (store is a fixture)

from storage import Ref, Store, open_store

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'roundhouse[ray]'")
SHARED = {"processes": 2, "zero": 2, "save_steps": 1}
SIZES = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two workers need two nodes; the third is for when one of them is lost."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=SIZES)
    try:
        for _ in range(2):
            found.add_node(**SIZES)
        yield found
    finally:
        found.shutdown()


def workers() -> dict[int, psutil.Process]:
    """The running training workers by rank."""
    found = {}
    for one in psutil.process_iter():
        try:
            if "engine.workers" in one.cmdline():
                found[int(one.environ()["RANK"])] = one
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def node_of(cluster: Any, worker: psutil.Process) -> Any:
    """The node whose raylet started the actor that started the worker; None for the head node, which the cluster needs."""
    above = [one.pid for one in worker.parents()]
    for node in cluster.worker_nodes:
        for info in node.all_processes["raylet"]:
            if info.process.pid in above:
                return node
    return None


def test_a_worker_and_then_its_node_are_lost_and_the_bytes_are_the_same(
    cluster: Any,
    store: Store,  # noqa: F811
    tmp_path: Path,
) -> None:
    changes = {"epochs": 30}
    given = spec(store, tmp_path / "whole", "train", changes, {"launcher": "deepspeed", **SHARED})
    given["save"] = False
    assert ended(start(given, tmp_path / "spec.json")) == 0
    wanted = files(tmp_path / "whole")

    def begin(name: str) -> Any:
        one = spec(store, tmp_path / name, "train", changes, {"launcher": "ray", **SHARED})
        one["ref"] = Ref("model", "train", "2" * 16).key
        return start(one, tmp_path / "spec.json", RAY_ADDRESS=cluster.address)

    process = begin("first")
    until(process, "saved")
    found = workers()
    assert len(found) == 2 and len({one.parents()[1].pid for one in found.values()}) == 2  # on two nodes
    found[1].kill()
    assert ended(process) == -signal.SIGKILL

    process = begin("second")
    lines = until(process, "saved")
    assert any("continues from save point" in line for line in lines)
    lost = [node for one in workers().values() if (node := node_of(cluster, one))]
    cluster.remove_node(lost[0], allow_graceful=False)
    assert ended(process) == -signal.SIGKILL

    process = begin("third")
    lines = until(process, "done")
    assert ended(process) == 0
    assert any("continues from save point" in line for line in lines)
    assert files(tmp_path / "third") == wanted
    end = time.monotonic() + 30
    while workers() and time.monotonic() < end:
        time.sleep(0.2)
    assert not workers()


def test_replicas_on_two_nodes_give_the_same_bytes(
    cluster: Any, make_job: Any, policy: Path, prompts: Path, tmp_path: Path
) -> None:
    wanted = alone(make_job, policy, prompts)
    shared = open_store((tmp_path / "shared").as_uri())
    given = sample_spec(shared, policy, prompts, tmp_path / "many", launcher="ray", processes=2)
    process = start(given, tmp_path / "spec.json", RAY_ADDRESS=cluster.address)
    ended(process)
    assert process.returncode == 0
    assert files(tmp_path / "many") == wanted


def test_no_cluster_is_one_line(policy: Path, prompts: Path, tmp_path: Path) -> None:
    shared = open_store((tmp_path / "shared").as_uri())
    given = sample_spec(shared, policy, prompts, tmp_path / "none", launcher="ray", processes=2)
    process = start(given, tmp_path / "spec.json", RAY_ADDRESS="127.0.0.1:9", RAY_raylet_start_wait_time_s="1")
    lines = until(process, "failed")
    assert ended(process) == 1
    assert "no Ray cluster at 127.0.0.1:9" in lines[-1]
    assert os.linesep not in lines[-1].strip()
