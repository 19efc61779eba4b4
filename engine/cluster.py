"""Processes of a stage on a Ray cluster (`runtime.launcher: ray`), each where there is room for it.

A place is an actor in a placement group. It starts the same command as on one machine, hands on what that prints, and brings
its results over Ray; everything else goes through the store, which every node must reach. An actor ends with this driver, and
its process with it by a lifeline. Ray is an extra: `pip install roundhouse[ray]`.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import StageError
from engine.places import Died, Place, Process, free_port

ROOT = Path(__file__).resolve().parent.parent
PART = 32 << 20  # bytes of a file that come at a time
ASK = 30.0  # seconds between two lines that say what is waited for


class Seat:
    """The actor: one process on its node, in a folder of its own."""

    def __init__(self) -> None:
        self.out = Path(tempfile.mkdtemp(prefix="roundhouse-"))
        self.process: Process | None = None

    def address(self) -> tuple[str, int]:
        """See Place."""
        import ray

        host = ray.util.get_node_ip_address()
        return host, free_port(host)

    def said(self, spec: dict[str, Any], env: dict[str, str]) -> Iterator[str | int]:
        """Run the spec; yields what Place.said says."""
        (self.out / "_beside").mkdir(exist_ok=True)
        self.process = Process({**spec, "out": str(self.out)}, env)
        yield from self.process.said()

    def files(self) -> list[tuple[str, int]]:
        """(path under `out`, size) of every file."""
        found = sorted(path for path in self.out.rglob("*") if path.is_file())
        return [(path.relative_to(self.out).as_posix(), path.stat().st_size) for path in found]

    def read(self, name: str, first: int) -> bytes:
        """The next part of a file from byte `first` on."""
        with (self.out / name).open("rb") as file:
            file.seek(first)
            return file.read(PART)

    def clean(self) -> None:
        """End the process if it runs, and remove the folder."""
        if self.process is not None:
            self.process.end()
        shutil.rmtree(self.out, ignore_errors=True)


class Remote:
    """A place on the cluster, seen from the stage."""

    grace = 60.0  # until Ray knows that a node is gone

    def __init__(self, actor: Any, number: int) -> None:
        self.actor, self.name, self.stream = actor, f"place {number} on the Ray cluster", None

    def address(self) -> tuple[str, int]:
        """See Place."""
        import ray

        found: tuple[str, int] = ray.get(self.actor.address.remote())
        self.name = f"{self.name}, {found[0]}"
        return found

    def device(self, rank: int) -> int:
        """See Place. Ray shows a process the devices that it was given, and no others."""
        return 0

    def visible(self, number: int, devices: int) -> dict[str, str]:
        """See Place."""
        return {}

    def start(self, spec: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """See Place."""
        self.stream = self.actor.said.options(num_returns="streaming").remote(dict(spec), dict(env))

    def said(self) -> Iterator[str | int]:
        """See Place. A lost actor counts as a killed process."""
        import ray

        try:
            for item in self.stream:  # type: ignore[attr-defined]
                yield ray.get(item)
        except ray.exceptions.RayError as error:
            self.name = f"{self.name}: {' '.join(str(error).split())[-200:]}"  # what was raised comes last
            yield -9

    def bring(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """See Place."""
        import ray

        try:
            for name, size in ray.get(self.actor.files.remote()):
                if names is not None and name not in names:
                    continue
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as out:
                    while out.tell() < size:
                        out.write(ray.get(self.actor.read.remote(name, out.tell())))
        except ray.exceptions.RayError as error:
            raise Died(f"{self.name} was lost with what it had made ({' '.join(str(error).split())[:200]})") from error

    def end(self) -> None:
        """See Place."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # it may be gone
            ray.get(self.actor.clean.remote(), timeout=5)
        ray.kill(self.actor)


def _reach(address: str) -> None:
    """Raise ConnectionError where nothing listens at HOST:PORT; Ray itself asks there for ten minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10.0).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


@contextlib.contextmanager
def places(runtime: Mapping[str, Any], count: int, devices: int) -> Iterator[list[Place]]:
    """`count` places, each with the runtime's threads and so many devices, for as long as the block lasts.

    Raises:
        StageError: Ray is not installed, or there is no cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise StageError("runtime.launcher is ray, but Ray is not installed: pip install 'roundhouse[ray]'")
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from engine.run import say

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "auto")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False,
                 runtime_env={"env_vars": {"PYTHONPATH": paths}})  # fmt: skip
    except ConnectionError as error:
        raise StageError(
            f"no Ray cluster at {address} ({error}); start one here (ray start --head), or set RAY_ADDRESS"
        ) from error
    bundle = {"CPU": float(runtime["threads"])} | ({"GPU": float(devices)} if runtime["device"] == "cuda" else {})
    found: list[Place] = []
    try:
        group = ray.util.placement_group([bundle] * count, strategy="PACK")
        while not group.wait(ASK):
            say(
                event="log",
                text=f"waits for {count} x {bundle} on the Ray cluster, which has {ray.cluster_resources()}",
            )
        kind = ray.remote(max_concurrency=2)(Seat)  # files come while the process runs
        found += [
            Remote(kind.options(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0),
                                scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote(), i)
            for i in range(count)
        ]  # fmt: skip
        yield found
    finally:
        for place in found:
            place.end()
        ray.shutdown()  # actors and the placement group end with their driver
