"""What a Prefect server must hold before it can run us: work pool, device limits, zombie automation, deployments.

Every function may be called again at any time: it brings the server to the wanted state and changes nothing else.
Import this module only with the server's settings in the environment (Prefect reads them when it is imported).
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

POOL = "roundhouse"
DEVICE_LIMIT = "roundhouse-device-{index}"
TAKING_LIMIT = "roundhouse-taking"
ZOMBIES = "roundhouse: a run without a heartbeat has crashed"
SILENCE = timedelta(seconds=120)  # four heartbeats of 30 s; 90 s with the default heartbeat of 180 s kills healthy runs


def work_pool(client: SyncPrefectClient) -> None:
    """Create the process pool whose workers do not copy a run's output to their own.

    With the default `stream_output: true` a worker's death breaks the run's stdout, and the run dies with it.
    """
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["stream_output"]["default"] = False
    try:
        found = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        return
    if found.base_job_template != template:
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))


def device_limits(client: SyncPrefectClient, devices: int) -> list[str]:
    """One global limit of a single slot per device, and one for taking leases; returns their names.

    Stages take a device's, strict and leased, and the other for a moment on a store that ignores create-only writes.
    """
    names = [DEVICE_LIMIT.format(index=index) for index in range(devices)] + [TAKING_LIMIT]
    for name in names:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    return names


def zombie_automation(client: SyncPrefectClient) -> None:
    """A run that stops sending heartbeats becomes Crashed, so that `resume` (and a person) can see it.

    An open-source server does nothing with missing heartbeats by itself, and a worker that is stopped kills its runs
    without reporting them: they would look Running for ever. The silence is counted from the state Running on, because a
    host can die before the first heartbeat.
    """
    wanted = AutomationCore(
        name=ZOMBIES,
        description="Heartbeats come every 30 s; after 120 s of silence the process or its host is gone.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                "prefect.flow-run.Completed",
                "prefect.flow-run.Failed",
                "prefect.flow-run.Cancelled",
                "prefect.flow-run.Crashed",
            },
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message="No heartbeat for 120 s: the process or its host is gone. `roundhouse resume` continues it.",
            )
        ],
    )
    found = client.read_automations_by_name(ZOMBIES)
    if found and getattr(found[0].trigger, "after", None) == wanted.trigger.after:
        return
    for old in found:  # of an earlier version of the project
        client.delete_automation(old.id)
    client.create_automation(wanted)


def deploy(root: Path, env: Mapping[str, str]) -> list[str]:
    """Register every deployment of `<root>/prefect.yaml`; returns their names, like "llama2-style/iterative".

    Raises:
        RuntimeError: `prefect deploy` failed; the message ends with its output.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=root, env={**env, "PWD": str(root)}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"`prefect deploy --all` failed in {root}:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return re.findall(r"Deployment '([^']+)' successfully", done.stdout)


def online_workers(client: SyncPrefectClient) -> dict[str, datetime]:
    """The workers of our pool that the server has heard from lately, by name, with when it last did.

    A dead worker stays in it for a minute and a half; of one's own host, ask its process.
    """
    try:
        workers = client.read_workers_for_work_pool(POOL)
    except ObjectNotFound:
        return {}
    online = [worker for worker in workers if worker.status == WorkerStatus.ONLINE]
    return {worker.name: worker.last_heartbeat_time for worker in online if worker.last_heartbeat_time}
