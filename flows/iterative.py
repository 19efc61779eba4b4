"""The flow `llama2-style`: from a base model to v5, each stage a cached task."""

import contextlib
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from configs import ConfigError, load, load_runtime
from flows.rounds import align
from tasks import Leaked, Rejected, Run, Stopped, Uncertified, connect, runs, trackers
from tasks.launch import stop_all, warm_up
from tasks.outcome import publish
from tasks.watch import listener

RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)


def _run_name() -> str:
    """The campaign's name, seed and goal, as people see them in the UI."""
    given = flow_run.parameters
    parts = [
        Path(str(given.get("config"))).stem,
        *(f"{k} {given[k]}" for k in ("seed", "until") if given.get(k) is not None),
    ]
    return ", ".join(parts)


@flow(
    name="llama2-style",
    flow_run_name=_run_name,
    task_runner=RUNNER,
    persist_result=False,
)
def iterative(
    config: str = "tiny",
    seed: int | None = None,
    store: str | None = None,
    until: str | None = None,
    runtime: str | None = None,
) -> str:
    """Run a campaign, reusing every stage that the store has.

    Args:
        config: a YAML file, or the name of one that comes with the project.
        seed: instead of the config's.
        store: URL of the object store, instead of the config's; file:///... or s3://bucket/prefix.
        until: stop after this version (v2) or round's reward models (r2-rewards).
        runtime: a YAML file with another `runtime:`.

    Returns:
        The key of the last result.
    """
    warm_up()  # its imports take as long as Prefect's first steps
    campaign = load(config, seed=seed)
    chosen = load_runtime(runtime) if runtime else campaign.runtime
    trackers.check(chosen)
    run = Run(campaign, connect(store, chosen), chosen, until=until, listen=listener())
    runs.remember(run.store, {"config": config, "seed": seed, "until": until, "runtime": runtime})
    try:
        try:
            with contextlib.suppress(Stopped):
                align(run)
        except (Leaked, Uncertified):  # a verdict on the campaign, and the report shows on what
            run.settle()
            publish(run)
            raise
        run.settle()
        key = publish(run)
        if run.rejected:
            raise Rejected(run.rejected)  # now that everything begun has ended and the report shows why
        return key
    except BaseException:
        run.cancelled.set()
        stop_all()  # a cancelled flow must not wait for its threads: their children end here
        raise


if __name__ == "__main__":
    try:
        iterative()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
