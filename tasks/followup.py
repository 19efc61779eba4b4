"""Start what a refresh has decided: once, through the Prefect server's deployment where there is one, else here."""

from collections.abc import Callable, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from tasks.chain import Chain, Entry
from tasks.run import Run

DEPLOYMENT = "continued-pretraining/realign"


def follow_up(chain: Chain, entry: Entry, parameters: dict[str, Any], here: Callable[[], Any]) -> str | None:
    """Start the follow-up of a refresh unless it was started; returns how, or None if there is nothing to start.

    The server keeps one run for an idempotency key, so that a run killed between starting it and saying so in the store
    starts nothing twice. Without such a deployment `here` does the work in this process; when that dies, the next run of the
    refresh does it again, from what the store has.
    """
    if entry.action == "nothing" or chain.followed(entry.number) is not None:
        return None
    key = f"{chain.home}/r{entry.number:04d}/{entry.action}"
    if _is_deployed():
        run = run_deployment(
            DEPLOYMENT, parameters=parameters, idempotency_key=key, timeout=0, as_subflow=False, tags=[entry.action]
        )
        how = f"run {getattr(run, 'id', '')} of {DEPLOYMENT}"
    else:
        here()
        how = "in the refresh's own process"
    chain.follow(entry.number, how)
    return how


def _is_deployed() -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
    return True


def show(run: Run, made: Sequence[Entry]) -> None:
    """The losses and the decision of each refresh, in the Prefect UI."""
    for entry in made:
        key, name = f"{run.campaign.name}-r{entry.number}", f"r{entry.number}"
        losses, decision = (run.artifacts[f"{name}-{stage}"].summary() or {} for stage in ("measure", "decide"))
        rows = [
            {"base": label, "corpus": corpus, **values}
            for label, corpora in losses.get("models", {}).items()
            for corpus, values in corpora.items()
        ]
        create_table_artifact(rows, key=f"losses-{key}", description=f"Held-out losses before and after {name}")
        lines = [f"**{decision['action']}**, best on the new base: {decision['candidate']}", ""]
        create_markdown_artifact(
            "\n".join([*lines, *(f"- {reason}" for reason in decision["reasons"])]),
            key=f"decision-{key}",
            description=f"What {name} asks for",
        )
