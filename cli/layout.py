"""What a config would run, laid out without running it: a campaign, a bake-off, or the refresh that is due."""

import contextlib
from typing import Any


def planned(
    config: str,
    seed: int | None,
    store: str | None,
    runtime: str | None,
    until: str | None = None,
    require_data: bool = True,
) -> Any:
    """The campaign laid out without running it."""
    from configs import load, load_runtime
    from flows.bakeoff import compete
    from flows.rounds import align
    from tasks import Run, Stopped, connect

    campaign = load(config, seed=seed, require_data=require_data)
    chosen = load_runtime(runtime) if runtime else campaign.runtime
    run = Run(campaign, connect(store, chosen), chosen, mode="plan", until=until)
    with contextlib.suppress(Stopped):
        (align if campaign.bake_off is None else compete)(run)
    return run


def laid_out(
    config: str,
    seed: int | None,
    store: str | None,
    runtime: str | None = None,
    until: str | None = None,
    require_data: bool = True,
) -> tuple[Any, list[Any]]:
    """A campaign, or the refresh that is due; and runs whose finished stages tell what those of a refresh cost: its campaign's,
    and the refresh before."""
    from configs import ConfigError
    from configs.refresh import is_refresh

    if not is_refresh(config):
        return planned(config, seed, store, runtime, until, require_data), []
    if until is not None:
        raise ConfigError(f"until {until!r}: {config} is a refresh, which has no versions to stop at")
    from flows import continued
    from flows.rounds import align
    from tasks import Run
    from tasks.refreshing import open_work

    found = []
    works = [open_work(config, seed, store, runtime, mode="plan") for _ in range(2)]
    for work, last in zip(works, (False, True)):
        continued.lay_out(work.run, work.plan, work.standing, work.chain, last=last)
        found.append(work.run)
    run, before = found
    campaign = Run(works[0].campaign, run.store, run.runtime, mode="plan")
    align(campaign)
    return run, [campaign, before]
