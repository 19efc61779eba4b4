"""The flow `continued-pretraining`: train a campaign's base on the documents that are new, and realign what that asks for."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from configs import ConfigError
from flows import continued
from flows.iterative import RUNNER
from flows.rounds import align
from tasks.followup import follow_up, show
from tasks.launch import stop_all, warm_up
from tasks.outcome import publish
from tasks.refreshing import open_work, rounds_of
from tasks.standing import given
from tasks.watch import listener


def _run_name() -> str:
    """The refresh's file and what of it is done, as people see them in the UI."""
    shown = flow_run.parameters
    return ", ".join(str(part) for part in (Path(str(shown.get("config"))).stem, shown.get("action")) if part)


@flow(name="continued-pretraining", flow_run_name=_run_name, task_runner=RUNNER, persist_result=False)
def refresh(
    config: str = "refresh", seed: int | None = None, store: str | None = None, runtime: str | None = None
) -> State[str] | str:
    """Train a campaign's base on the documents that have arrived, with replay, and decide what alignment to redo.

    Args:
        config: a refresh's YAML file, or the name of one that comes with the project.
        seed: instead of the refresh's and the campaign's.
        store: URL of the object store, instead of the config's; file:///... or s3://bucket/prefix.
        runtime: a YAML file with another `runtime:`.

    Returns:
        The key of the newest base. A state named NothingNew when there was nothing to train on.
    """
    warm_up()
    asked: dict[str, Any] = {"config": config, "seed": seed, "store": store, "runtime": runtime}
    work = open_work(**asked, listen=listener())
    try:
        made = continued.refresh(work.run, work.plan, work.standing, work.chain)
        work.run.settle()
        show(work.run, made)
        known = work.chain.entries()
        for entry in known[-1:] if work.plan.follow_up == "start" else ():
            task = {**asked, "number": entry.number}
            follow_up(work.chain, entry, task, lambda: realign(**task))  # noqa: B023  # called at once
    except BaseException:
        work.run.cancelled.set()
        stop_all()  # a cancelled flow must not wait for its threads: their children end here
        raise
    if not made:
        return Completed(
            name="NothingNew", message=f"nothing new for {work.run.campaign.name}, {len(known)} refreshes so far"
        )
    return known[-1].base


@flow(name="continued-pretraining", flow_run_name=_run_name, task_runner=RUNNER, persist_result=False)
def realign(
    config: str = "refresh",
    number: int | None = None,
    action: Literal["short-sft", "rounds"] | None = None,
    seed: int | None = None,
    store: str | None = None,
    runtime: str | None = None,
) -> State[str] | str:
    """Do what a refresh has decided: a short SFT of the chat model on the new base, or the campaign's rounds from it.

    Args:
        config: the refresh's YAML file or name.
        number: of the refresh whose base is meant; empty: the last.
        action: instead of what was decided.
        seed: as the refresh was given.
        store: as the refresh was given.
        runtime: a YAML file with another `runtime:`.

    Returns:
        The key of the last result. A state named NothingToDo when the decision was so.
    """
    warm_up()
    work = open_work(config, seed, store, runtime, listen=listener())
    entry = work.entry(number)
    wanted = action or entry.action
    run = rounds_of(work, entry) if wanted == "rounds" else work.run
    try:
        if wanted == "rounds":
            align(run, base=given(run.store, "base", entry.base))
        elif wanted == "short-sft":
            continued.short_sft(run, work.plan, work.standing, entry)
        run.settle()
        if wanted == "rounds":
            return publish(run)
    except BaseException:
        run.cancelled.set()
        stop_all()
        raise
    if wanted == "nothing":
        return Completed(name="NothingToDo", message=f"refresh r{entry.number} asks for nothing")
    return list(run.artifacts.values())[-1].ref.key


if __name__ == "__main__":
    try:
        refresh()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
