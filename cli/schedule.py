"""`roundhouse schedule`: switch the scheduled refreshes on and off. They are deployed switched off."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cli import services
from cli.site import ServiceError, Site

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule

REFRESH = "continued-pretraining/refresh"


def switch(on: bool | None, site: Site | None = None, say: Callable[[str], None] = print) -> None:
    """Switch every schedule of the refresh on or off, and say when it runs; None only says.

    Raises:
        ServiceError: no server is up in this folder, or it does not know the deployment.
    """
    site = site or Site()
    if services.serving(site) is None:
        raise ServiceError("no Prefect server is up in this folder: `make up` first; a schedule is kept by a server")
    with services.client(site) as client:
        from prefect.exceptions import ObjectNotFound

        try:
            deployment = client.read_deployment_by_name(REFRESH)
        except ObjectNotFound:
            raise ServiceError(f"the server does not know {REFRESH}: `make up` registers it") from None
        for schedule in deployment.schedules:
            if on is not None and schedule.active != on:
                client.update_deployment_schedule(deployment.id, schedule.id, active=on)
            active = schedule.active if on is None else on
            say(f"{REFRESH}: {_shown(schedule)}, {'on' if active else 'off'}")


@contextlib.contextmanager
def kept(client: "SyncPrefectClient") -> Iterator[None]:
    """Keep what was switched on through a deployment, which sets every schedule to what the file says: off."""
    before = {(deployment.id, schedule.slug) for deployment, schedule in _schedules(client) if schedule.active}
    yield
    for deployment, schedule in _schedules(client):
        if (deployment.id, schedule.slug) in before and not schedule.active:
            client.update_deployment_schedule(deployment.id, schedule.id, active=True)


def _schedules(client: "SyncPrefectClient") -> "list[tuple[object, DeploymentSchedule]]":
    return [(deployment, schedule) for deployment in client.read_deployments() for schedule in deployment.schedules]


def _shown(schedule: "DeploymentSchedule") -> str:
    rule = schedule.schedule
    return f"cron {getattr(rule, 'cron', rule)!r}, time zone {getattr(rule, 'timezone', None) or 'UTC'}"
