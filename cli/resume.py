"""`roundhouse resume`: continue the last run of a campaign, wherever it died."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cli import embedded, services
from cli.site import Site

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def resume(
    config: str | None,
    run_here: Callable[..., None],
    here: bool = False,
    site: Site | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Continue the last run of `config` (None: of any campaign) with the parameters that it had.

    With a server, a run that only looks alive is forced to Crashed first, and the continuation is a new run of the
    deployment `llama2-style/iterative`; without a worker, or with `here`, it runs in this process through `run_here`.
    Without a server the hint in the store says which run was the last; what is left to do, the store knows anyway.

    Raises:
        LookupError: no config was given and the server knows no run.
    """
    site = site or Site()
    env = services.serving(site)
    if env is None:
        embedded.choose(site)  # before Prefect is imported
        parameters = _last_of_store() if config is None else {"config": config}
        say(f"no Prefect server is up in this folder: continuing {parameters['config']} here, from the store")
        run_here(**parameters)
        return
    os.environ.update(env)  # before the flow's first import of Prefect, which reads them then
    from prefect.client.schemas.objects import StateType

    from flows.resume import DEFAULT
    from tasks import runs

    with services.client(site) as client:
        found = runs.settle(client, config, DEFAULT, say)
        if found.alive is not None:
            say(f"run {found.alive.name} of {found.campaign} is {found.alive.state_name}: nothing to resume")
            return
        if found.last is not None:
            say(f"last run of {found.campaign}: {found.last.name}, {found.last.state_name}")
            if found.last.state_type == StateType.COMPLETED:
                say("nothing to resume")
                return
        if not here and services.has_worker(site, client):
            say(_submit(client, found.parameters))
            return
    say("continuing in this process" + ("" if here else ", because no worker is online"))
    run_here(**found.parameters)


def _last_of_store() -> dict[str, Any]:
    from configs import Runtime
    from storage import open_store
    from tasks import runs
    from tasks.run import store_url

    url = store_url(None, Runtime())
    parameters = runs.recall(open_store(url))
    if parameters is None:
        raise LookupError(f"{url} remembers no run: say which config to continue, as in `roundhouse resume tiny`")
    return parameters


def _submit(client: "SyncPrefectClient", parameters: dict[str, Any]) -> str:
    deployment = client.read_deployment_by_name("llama2-style/iterative")
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, tags=["resumed"])
    return f"continuing as run {run.name} ({run.id}); watch it with: prefect flow-run watch {run.id}"
