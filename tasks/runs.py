"""Flow runs as a Prefect server knows them: find a campaign's last one, tell a dead one from a live one, end it.

A run whose host or worker vanished looks Running for ever on an open-source server, cannot be retried, and stays in
Cancelling when cancelled. So death is judged by silence: every run sends a heartbeat each 30 s (`make up` sets this).
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from storage import Store

FLOW = "llama2-style"
POOL = "roundhouse"
HINT = "last-run"
SILENCE = timedelta(seconds=90)  # three heartbeats of 30 s
LAG = timedelta(
    seconds=5
)  # from the sending of a heartbeat to its time on a busy server; the Date header has whole seconds
ACTIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
ROOT = Path(__file__).resolve().parent.parent
Say = Callable[[str], None]
Verdict = Literal["alive", "gone", "silent"]


@dataclass(frozen=True)
class Found:
    """What `settle` found: the campaign, the parameters to continue it with, its last run, and a live run if any."""

    campaign: str
    parameters: dict[str, Any]
    last: FlowRun | None
    alive: FlowRun | None


def settle(
    client: SyncPrefectClient, config: str | None, default: str, say: Say, skip: UUID | None = None, root: Path = ROOT
) -> Found:
    """Find the campaign's last run and force every run of it that only looks alive to Crashed.

    Args:
        config: the campaign; None means that of the last run of any.
        default: the config of a run that was started without one.
        skip: the asking run itself.

    Raises:
        LookupError: `config` is None and the server knows no run.
    """
    resuming = _resume_deployment(client)
    known = [run for run in _runs(client) if run.id != skip]
    named = [run for run in known if run.deployment_id != resuming or run.parameters.get("config")]
    of = [run for run in named if config is None or _ran(run, default, root) == campaign(config, root)]
    # A resume carries only the config: the parameters (seed, store, ..) are those of the run that it continued.
    last = next((run for run in of if run.deployment_id != resuming), of[0] if of else None)
    if last is None and config is None:
        raise LookupError(f"this server knows no run of {FLOW}: start one, or say which config to continue")
    wanted = campaign(config, root) if config is not None else _ran(last, default, root) if last else default
    parameters = dict(last.parameters) if last else {"config": config}
    for run in known:
        mine = _ran(run, default, root) == wanted or (
            run.deployment_id == resuming and not run.parameters.get("config")
        )
        if mine and (_is_queued(client, run) or (run.state_type in ACTIVE and await_verdict(client, run, say))):
            return Found(wanted, parameters, last, run)
        if mine and run.state_type in ACTIVE:
            crash(client, run, "its process or its host is gone")
            say(f"run {run.name} ({run.id}) was {run.state_name} but dead: forced to Crashed")
    return Found(wanted, parameters, last, None)


def active(client: SyncPrefectClient, skip: UUID | None = None) -> list[FlowRun]:
    """The runs of our flow that the server believes to be at work, newest first."""
    return [run for run in _runs(client) if run.state_type in ACTIVE and run.id != skip]


def campaign(config: str, root: Path = ROOT) -> str:
    """One spelling for all ways to name a config: "tiny", "configs/tiny.yaml" and its absolute path are the same."""
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        return config
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    inside = path.parent == Path("configs")
    return path.stem if inside else path.as_posix()


def verdict(client: SyncPrefectClient, run: FlowRun) -> Verdict:
    """Whether an active run lives: proof on this host first, else its heartbeats; "silent" is not yet gone."""
    if _process_lives(run):
        return "alive"
    if is_gone(client, run):
        return "gone"
    last, now = _last_sign(client, run), _server_time(client)
    return "gone" if now - last >= SILENCE else "silent"


def is_gone(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a worker of this host started the run and its process is no longer there."""
    if run.infrastructure_pid is None or _process_lives(run) or not Path("/proc/self/environ").exists():
        return False
    try:
        workers = client.read_workers_for_work_pool(POOL)
    except ObjectNotFound:
        return False
    return {worker.name for worker in workers} == {f"roundhouse-{socket.gethostname()}"}


def await_verdict(client: SyncPrefectClient, run: FlowRun, say: Say) -> bool:
    """Wait until it is certain whether the run lives: a new heartbeat, a change of state, or too long a silence."""
    # A busy server notes a heartbeat seconds after it was sent: only one that is later than that is a sign of life.
    began = _server_time(client) + LAG
    told = False
    while True:
        run = client.read_flow_run(run.id)
        if run.state_type not in ACTIVE:
            return False
        seen = verdict(client, run)
        if seen != "silent":
            return seen == "alive"
        last = _last_sign(client, run)
        if last > began:
            return True
        if not told:
            left = SILENCE - (_server_time(client) - last)
            say(f"run {run.name} says {run.state_name}; waiting up to {left.total_seconds():.0f} s for a sign of life")
            told = True
        time.sleep(2.0)


def crash(client: SyncPrefectClient, run: FlowRun, why: str) -> None:
    """Force the run to Crashed, so that it can be continued."""
    client.set_flow_run_state(run.id, Crashed(message=f"roundhouse: {why}"), force=True)


def remember(store: Store, parameters: Mapping[str, Any]) -> None:
    """Leave a hint in the store: what the last run was, for a `resume` without a server that remembers runs."""
    hint = {"run": str(flow_run.id or ""), "parameters": dict(parameters)}
    store.put_state(HINT, json.dumps(hint, sort_keys=True).encode())


def recall(store: Store) -> dict[str, Any] | None:
    """The parameters of the last run that this store saw, or None. A damaged hint counts as none."""
    try:
        parameters = json.loads(store.get_state(HINT) or b"null")["parameters"]
    except (ValueError, TypeError, KeyError):
        return None
    return parameters if isinstance(parameters, dict) else None


def _runs(client: SyncPrefectClient) -> list[FlowRun]:
    flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    return client.read_flow_runs(flow_filter=flow, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)


def _ran(run: FlowRun, default: str, root: Path) -> str:
    return campaign(run.parameters.get("config") or default, root)


def _is_queued(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a worker is about to take the run; a schedule's future runs do not count."""
    due = run.next_scheduled_start_time or run.expected_start_time
    return run.state_type == StateType.SCHEDULED and due is not None and due <= _server_time(client) + SILENCE


def _resume_deployment(client: SyncPrefectClient) -> UUID | None:
    try:
        return client.read_deployment_by_name(f"{FLOW}/resume").id
    except ObjectNotFound:
        return None


def _process_lives(run: FlowRun) -> bool:
    """Whether the process that the run names exists on this host and is really that run."""
    if not (run.infrastructure_pid or "").isdigit():
        return False
    try:
        environment = Path(f"/proc/{run.infrastructure_pid}/environ").read_bytes()
    except OSError:
        return False
    return f"PREFECT__FLOW_RUN_ID={run.id}".encode() in environment.split(b"\0")


def _last_sign(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """When the server last heard of the run: its newest heartbeat or its last change of state."""
    signs = [run.state.timestamp] if run.state else [run.created or datetime.fromtimestamp(0, UTC)]
    events = client.read_events(
        EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        ),
        limit=1,
    )
    return max(signs + [event.received for event in events.events])


def _server_time(client: SyncPrefectClient) -> datetime:
    """The server's clock, which stamped the heartbeats; ours may differ."""
    return parsedate_to_datetime(client.hello().headers["date"])
