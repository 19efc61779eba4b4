"""Whole runs of the micro campaign on a Prefect server, killed at random moments until they are done.

`python -m benchmarks.reliability.campaigns FOLDER --kills 20 [--mode deployed|local]` adds a line for each campaign to
FOLDER/deployed.jsonl and FOLDER/local.jsonl in turn, until that many kills have happened (or --seconds have passed); a
later call goes on. One campaign is one seed and one new store.

deployed: runs of the deployments on a worker; killed are stages, the flow, the worker, or worker and flow at once (a
host that loses its power). Then the worker is brought back, and the run continued by `llama2-style/resume` or
by running again. local: `roundhouse run` against the same server; killed are stages or the whole process.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reliability.kinds import campaign
from benchmarks.reliability.stages import add, lines
from cli import daemon, services
from cli.site import Site, environment
from configs import load
from engine import forkserver
from storage import open_store
from storage.verify import verify
from tasks import Run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1500.0  # seconds for one run of a campaign of 10 s, on a machine that does much other work
WEIGHTS = {
    "deployed": {"worker": 10, "stage": 8, "flow": 3, "host": 3},  # a killed flow's device is free only after 60 s
    "local": {"stage": 4, "flow": 1},
}
MOST = 30  # kills of one campaign; then it may end


class Stuck(RuntimeError):
    """A run neither ended nor could be continued in time."""


@dataclass
class Outcome:
    """One campaign: what was killed when (seconds after its run had begun), in how many runs, and how it ended."""

    seed: int
    mode: str
    kills: list[tuple[str, float]] = field(default_factory=list)
    runs: int = 0
    same: bool = False
    problem: str = ""
    seconds: float = 0.0


class Deployed:
    """A run of a deployment on the site's worker. The server is asked twice a second at most: it has work to do."""

    def __init__(self, site: Site, store: str, again: bool, draw: random.Random) -> None:
        self.site, self._asked = site, 0.0
        self._known: Any = None
        name = draw.choice(("resume", "iterative")) if again else "iterative"
        given = {"config": "micro"} | ({} if name == "resume" else {"store": store})
        with services.client(site) as client:
            deployment = client.read_deployment_by_name(f"llama2-style/{name}")
            self.id = client.create_flow_run_from_deployment(deployment.id, parameters=given).id

    def _run(self) -> Any:
        if self._known is None or time.monotonic() - self._asked > 0.5:
            with services.client(self.site) as client:
                self._known = client.read_flow_run(self.id)
            self._asked = time.monotonic()
        return self._known

    def flow(self) -> psutil.Process | None:
        """Its process, None as long as there is none or when it is gone."""
        run = self._run()
        if run.state_name != "Running" or not (run.infrastructure_pid or "").isdigit():
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(int(run.infrastructure_pid))
        return None

    def ended(self) -> str | None:
        """The name of its final state."""
        state = self._run().state
        return str(state.name) if state.is_final() else None

    def worker(self) -> psutil.Process:
        found = daemon.find(self.site.state, "worker")
        assert found is not None, "no worker"
        return psutil.Process(found.pid)


class Local:
    """`roundhouse run` in a process of its own."""

    def __init__(self, site: Site, store: str, again: bool, draw: random.Random) -> None:
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_", "ROUNDHOUSE_"))
        }
        env |= {k: v for k, v in environment(site).items() if k != "ROUNDHOUSE_DEVICE_LIMITS"}
        command = [sys.executable, "-m", "cli", "run", "micro", "--store", store]
        with (site.root / "local.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def flow(self) -> psutil.Process | None:
        """Its process, None when it is gone."""
        return psutil.Process(self.process.pid) if self.process.poll() is None else None

    def ended(self) -> str | None:
        """Completed, or how it ended."""
        code = self.process.poll()
        return None if code is None else "Completed" if code == 0 else f"exit code {code}"


def stages(flow: psutil.Process) -> list[psutil.Process]:
    """The stages at work: what the warm server of the flow's process has forked."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        for child in _children(flow.pid):
            if b"engine.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                found += map(psutil.Process, _children(child))
    return found


def _children(pid: int) -> list[int]:
    """Asked of the kernel: psutil would look at every process of the machine, fifty times a second."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def until(claim: Callable[[], Any], what: str, pause: float = 0.1) -> Any:
    """Wait for a true value and return it. Raises Stuck."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := claim():
            return value
        time.sleep(pause)
    raise Stuck(f"{what}: not within {PATIENCE:.0f} s")


def strike(run: Deployed | Local, site: Site, draw: random.Random, outcome: Outcome, began: float) -> None:
    """Wait for a random moment and kill something of the run, unless it has ended by then."""
    flow = until(lambda: run.flow() or run.ended(), "the run's process")
    if isinstance(flow, str):
        return
    weights = WEIGHTS[outcome.mode]
    target = draw.choices(list(weights), list(weights.values()))[0]
    if target == "stage" or draw.random() < 0.7:  # most of the time there is work under way; else while it starts
        until(lambda: stages(flow) or not flow.is_running() or run.ended(), "a first stage", 0.02)
    pace = min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 3.0)  # on a busy machine all takes longer
    time.sleep(draw.uniform(0, (1.5 if target == "stage" else 4.0) * pace))
    if target == "stage":
        until(lambda: stages(flow) or not flow.is_running() or run.ended(), "a stage", 0.005)
    with contextlib.suppress(psutil.NoSuchProcess):
        if not flow.is_running() or flow.status() == psutil.STATUS_ZOMBIE:
            return
        if target == "stage":
            if not (found := stages(flow)):
                return
            draw.choice(found).kill()
        elif target == "flow":
            flow.kill()
        else:
            assert isinstance(run, Deployed)
            worker = run.worker()
            worker.suspend()  # a host that loses its power reports nothing
            if target == "host":
                flow.kill()
            worker.kill()
            worker.wait()
        outcome.kills.append((target, round(time.monotonic() - began, 2)))
    if target in ("worker", "host"):  # only the worker: what the server holds is there still
        services._start_worker(site, {**os.environ, **environment(site)}, say=lambda line: None)


def complete(site: Site, store: str, seed: int, mode: str, most: int) -> Outcome:
    """Run one campaign to its end through as many kills as `most`."""
    outcome, draw, began = Outcome(seed, mode), random.Random(f"{mode} {seed}"), time.monotonic()
    kind = {"deployed": Deployed, "local": Local}[mode]
    ended = None
    while ended != "Completed":
        run, started = kind(site, store, outcome.runs > 0, draw), time.monotonic()
        outcome.runs += 1
        while (ended := run.ended()) is None and len(outcome.kills) < most:
            before = len(outcome.kills)
            strike(run, site, draw, outcome, started)
            if len(outcome.kills) > before and outcome.kills[-1][0] in ("flow", "host"):
                break
        if outcome.kills and outcome.kills[-1][0] == "host" and ended is None:
            ended = "lost"  # nobody told the server; `resume` finds out, and running again does not need to
        ended = ended or until(run.ended, f"the end of run {outcome.runs}", 0.3)
        if outcome.runs > most + 3:
            raise Stuck(f"{outcome.runs} runs, the last: {ended}")
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def root_of(store: str) -> tuple[str, tuple[str, ...]]:
    """The campaign's root hash, after every file was hashed again, and what is wrong with it."""
    config = load("micro")
    with open_store(store) as opened:
        run = Run(config, opened, config.runtime, mode="plan")
        found = verify(opened, config.name, run.digest)
    return found.root, found.problems


def undisturbed(known: Path, scratch: Path) -> str:
    """The root hash of a campaign that nobody disturbed; kept in the file `known` for the next call."""
    if not known.exists():
        forkserver.preload()
        campaign(scratch / "finished")
        root, problems = root_of((scratch / "finished").as_uri())
        assert not problems, problems
        known.write_text(root)
    return known.read_text()


@contextlib.contextmanager
def project(folder: Path) -> Iterator[Site]:
    """A folder that looks like the project from Prefect's side, with its services up."""
    for name in ("flows", "configs", "prefect.yaml"):
        (folder / name).symlink_to(ROOT / name)
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    site = Site(folder, *ports)
    services._START_TIMEOUT = PATIENCE
    try:
        services.up(site, say=lambda line: None)
        yield site
    finally:
        services.down(site, say=lambda line: None)


def one(site: Site, folder: Path, scratch: Path, mode: str, most: int, first: int) -> Outcome:
    """One campaign more, added to the file of its mode."""
    results = folder / f"{mode}.jsonl"
    seed = max([first, *(line["seed"] + 1 for line in lines(results))])
    store = scratch / f"{mode}{seed}"
    try:
        outcome = complete(site, store.as_uri(), seed, mode, most)
        root, problems = root_of(store.as_uri())
        outcome.same, outcome.problem = root == undisturbed(folder / "undisturbed.txt", scratch), "; ".join(problems)
    except Stuck as error:
        outcome = Outcome(seed, mode, problem=str(error))
    add(results, outcome)
    print(json.dumps(vars(outcome)), flush=True)
    shutil.rmtree(store, ignore_errors=True)
    return outcome


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services are stopped
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20, help="end after so many")
    parser.add_argument("--mode", choices=sorted(WEIGHTS), nargs="*", default=sorted(WEIGHTS))
    parser.add_argument("--most", type=int, default=MOST, help="kills of one campaign")
    parser.add_argument(
        "--first", type=int, default=0, help="the least seed, for calls at the same time into folders of their own"
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no further campaign after this time")
    options = parser.parse_args()
    began, kills, bad = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("ROUNDHOUSE_SCRATCH")) as scratch:
        undisturbed(options.folder / "undisturbed.txt", Path(scratch))
        (Path(scratch) / "project").mkdir()
        with project(Path(scratch) / "project") as site:
            for mode in itertools.cycle(options.mode):
                if kills >= options.kills or time.monotonic() - began > options.seconds:
                    break
                outcome = one(
                    site, options.folder, Path(scratch), mode, min(options.most, options.kills - kills), options.first
                )
                kills, bad = kills + len(outcome.kills), bad + (not outcome.same or bool(outcome.problem))
    return 1 if bad or not kills else 0


if __name__ == "__main__":
    sys.exit(main())
