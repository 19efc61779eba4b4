"""The deployment `llama2-style/resume`: end what only looks alive, then continue the campaign's last run."""

import inspect
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.iterative import RUNNER, iterative
from tasks import runs

DEFAULT = str(inspect.signature(iterative.fn).parameters["config"].default)


@flow(
    name="llama2-style",
    flow_run_name="resume",
    task_runner=RUNNER,
    persist_result=False,
)
def resume(config: str | None = None, runtime: str | None = None) -> State[str] | str:
    """Continue the last run of a campaign with its own parameters; finished stages are reused.

    Args:
        config: the campaign to continue; empty: that of the last run of any.
        runtime: a YAML file with another `runtime:`, when the campaign continues on other hardware.

    Returns:
        The key of the last result. A state named AlreadyRunning when the last run is alive.
    """
    say = get_run_logger().info
    with get_client(sync_client=True) as client:
        found = runs.settle(client, config, DEFAULT, say, skip=UUID(str(flow_run.id)))
    if found.alive is not None:
        return Completed(name="AlreadyRunning", message=f"run {found.alive.name} is alive; nothing to resume")
    parameters = found.parameters | ({"runtime": runtime} if runtime else {})
    say("continuing %s with %s", found.campaign, parameters)
    return iterative.fn(**parameters)
