"""What a refresh works on and where it goes on from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from configs import Campaign, ConfigError, load_runtime
from configs.continuing import Continue, Infinite
from configs.gathering import Gather
from configs.recipes import Ingest
from configs.refresh import Refresh, load_refresh
from tasks.chain import Begun, Chain, Entry
from tasks.gather import gather, listings
from tasks.ingest import ingest
from tasks.run import Artifact, Run, connect
from tasks.stage import Listener
from tasks.standing import Standing, given


@dataclass(frozen=True)
class Work:
    """A refresh under way: its file, the campaign that it is of, the chain so far, and the run that lays out stages."""

    plan: Refresh
    campaign: Campaign
    standing: Standing
    chain: Chain
    run: Run

    def entry(self, number: int | None) -> Entry:
        """The refresh of that number, or the last one.

        Raises:
            ConfigError: there is none.
        """
        known = self.chain.entries()
        place = len(known) if number is None else number
        if not 1 <= place <= len(known):
            asked = "refresh" if number is None else f"r{number}"
            raise ConfigError(
                f"{self.run.campaign.name} has no {asked}: it has {len(known)} refreshes in {self.run.store.url}"
            )
        return known[place - 1]


def open_work(
    config: str,
    seed: int | None = None,
    store: str | None = None,
    runtime: str | None = None,
    *,
    mode: Literal["run", "plan", "direct"] = "run",
    listen: Listener = lambda label, event: None,
) -> Work:
    """Read a refresh and find what it goes on from.

    The chain is named by the campaign's record, not by the refresh's settings: another replay share or schedule goes on
    with it. Its stages are noted in a record of their own, `<campaign>-<refresh>`.

    Raises:
        ConfigError: a config that cannot be used, or a campaign that was not run. StorageError: the store is not usable.
    """
    plan, campaign = load_refresh(config, seed=seed)
    chosen = load_runtime(runtime) if runtime else plan.runtime or campaign.runtime
    opened = connect(store, chosen)
    standing = Standing(opened, campaign, plan.record)
    named = campaign.model_copy(update={"name": f"{campaign.name}-{plan.name}"})
    run = Run(named, opened, chosen, mode=mode, listen=listen)
    return Work(plan, campaign, standing, Chain(opened, named.name, standing.mark), run)


def rounds_of(work: Work, entry: Entry) -> Run:
    """The run of the campaign's rounds on the base of a refresh: a campaign of its own in the store."""
    named = work.campaign.model_copy(update={"name": f"{work.run.campaign.name}-r{entry.number}"})
    return Run(named, work.run.store, work.run.runtime, mode=work.run.mode, listen=work.run.listen)


def look_for(run: Run, plan: Refresh, standing: Standing, chain: Chain, known: Sequence[Entry]) -> Begun | None:
    """Look into the inboxes; what is new, pinned as the next refresh's work, or None if there is not enough of it."""
    seen = [given(run.store, f"r{entry.number}-gather", entry.gather) for entry in known]
    found = listings(plan.inboxes, plan.seed, [run.store.fetch(look.ref) for look in seen])
    if not found:
        run.listen("gather", {"event": "log", "text": "nothing has arrived since the last refresh"})
        return None
    number = len(known) + 1
    recipe = plan.gather.model_copy(update={"listings": found})
    look = look_again(run, plan, standing, known, number, recipe)
    begun = Begun(number=number, gather=look.ref.key, recipe=recipe)
    if run.mode == "plan" and look.made() is None:  # how many documents are new is not known before they are read
        return begun
    new = int((look.summary() or {})["documents"])
    if new < plan.least:
        text = f"{new} new documents, fewer than least = {plan.least}: they wait for the next look"
        run.listen(look.label, {"event": "log", "text": text})
        return None
    if run.mode != "plan":
        chain.begin(begun)
    return begun


def look_again(
    run: Run, plan: Refresh, standing: Standing, known: Sequence[Entry], number: int, recipe: Gather
) -> Artifact:
    """The look of a refresh: its listed files against everything seen before, the base's own text first of all."""
    own = old_documents(run, plan, standing)
    first = plan.gather.model_copy(update={"listings": ()})
    seen = [once(run, "r0-gather", lambda label: gather(run, label, first, documents=own))] if own else []
    seen += [given(run.store, f"r{entry.number}-gather", entry.gather) for entry in known]
    return once(run, f"r{number}-gather", lambda label: gather(run, label, recipe, seen=seen))


def old_documents(run: Run, plan: Refresh, standing: Standing) -> list[Artifact]:
    """What the campaign's base was trained on: its own documents, and what the refresh's file names besides."""
    found: list[Artifact] = []
    if (own := standing.newest("documents")) is not None:
        found.append(own)
    if plan.old:
        recipe = Ingest(rows="documents", sources=plan.old, held_out=plan.gather.held_out, seed=plan.seed)
        found.append(once(run, "r0-documents", lambda label: ingest(run, label, recipe)))
    return found


def training_of(plan: Refresh, first: bool) -> Continue:
    """The recipe of a refresh's training.

    The first one has no optimizer state to carry on; a later one on an infinite schedule restarts in its constant phase.
    """
    recipe = plan.training
    carried = recipe.optimizer_state == "carried"
    if carried:
        recipe = recipe.model_copy(
            update={"publish_optimizer": True, "optimizer_state": "reset" if first else "carried"}
        )
    if isinstance(recipe.schedule, Infinite) and not first:
        recipe = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"restart": True})})
    return recipe


def once(run: Run, label: str, make: Callable[[str], Artifact]) -> Artifact:
    """The stage of that label, laid out at the first asking."""
    return run.artifacts[label] if label in run.artifacts else make(label)
