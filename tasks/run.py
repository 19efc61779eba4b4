"""One campaign under way: turns stages into Prefect tasks, or only names them when planning.

Because a stage's name needs only the names of its inputs, the whole chain can be laid out before anything has run;
only what depends on a result (which version was accepted) waits for it.
"""

import os
import queue
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs import Campaign, ConfigError, Runtime
from configs.fields import Strict
from configs.recipes import Score
from storage import CampaignRecord, Ref, Store, digest, install_redactor, open_store
from tasks.extras import check_extras
from tasks.stage import Listener, Made, Stage, produce

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

ROOT = Path(__file__).resolve().parent.parent


class Stopped(Exception):
    """The run has reached the point it was asked to stop at."""


class Rejected(Stopped):
    """The gate refused a version, and the config says that this ends the campaign; the message is one line."""


class Artifact:
    """A stage of this run and, once it has ended, what it made."""

    def __init__(
        self, stage: Stage, made: Made | None, future: "PrefectFuture[Made] | None", upstream: "Sequence[Artifact]" = ()
    ) -> None:
        self.stage, self.upstream, self._made, self._future = stage, upstream, made, future

    @property
    def label(self) -> str:
        return self.stage.label

    @property
    def ref(self) -> Ref:
        return self.stage.ref

    @property
    def future(self) -> "PrefectFuture[Made] | None":
        return self._future

    def made(self) -> Made | None:
        """What the stage made; waits for it in a run, None in a plan where it does not exist yet."""
        if self._made is None and self._future is not None:
            for artifact in self.upstream:  # so that a failure is told by the stage that failed, not by those after it
                artifact.made()
            self._made = self._future.result()
        return self._made

    def summary(self) -> dict[str, Any] | None:
        """The small numbers the stage returned; waits in a run, None in a plan where they do not exist yet."""
        made = self.made()
        return made.summary if made else None


class Run:
    """Lays out the stages of one campaign, and runs them unless it is a plan."""

    def __init__(
        self,
        campaign: Campaign,
        store: Store,
        runtime: Runtime,
        *,
        mode: Literal["run", "plan", "direct"] = "run",
        until: str | None = None,
        listen: Listener = lambda label, event: None,
    ) -> None:
        if until is not None and until not in campaign.stops():
            raise ConfigError(f"until {until!r}: {campaign.name} can stop at {', '.join(campaign.stops())}")
        if mode != "plan":
            check_extras(runtime)
        self.campaign, self.store, self.runtime = campaign, store, runtime
        self.mode, self.until, self.listen = mode, until, listen
        self.artifacts: dict[str, Artifact] = {}
        self.versions: dict[str, Artifact] = {}
        self.evaluations: dict[str, Artifact] = {}
        self.verdicts: dict[str, Artifact] = {}
        self.rejected: str | None = None  # why the gate ended the campaign
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(runtime.slots):
            self.slots.put(slot)
        self.cancelled = threading.Event()
        self.lock = threading.Lock()

    @property
    def digest(self) -> str:
        """Names the campaign: its whole config but the runtime."""
        return digest(self.campaign.model_dump(mode="json", exclude={"runtime"}))

    @cached_property
    def record(self) -> CampaignRecord:
        """The campaign's record in the store, created if need be."""
        record = self.store.campaign(self.campaign.name, self.digest)
        record.create(self.campaign.model_dump(mode="json", exclude={"runtime"}))
        return record

    def record_or_none(self) -> CampaignRecord | None:
        """The campaign's record if it was ever begun; creates nothing."""
        names = (self.campaign.name, self.digest)
        return self.store.campaign(*names) if self.store.exists(f"campaigns/{'-'.join(names)}.json") else None

    def stage(
        self,
        label: str,
        work: str,
        recipe: Strict,
        *,
        kind: str,
        version: int,
        device: bool = True,
        **inputs: "Artifact | Sequence[Artifact] | None",
    ) -> Artifact:
        """Add a stage. In a run it starts as soon as its inputs are there and a device slot is free."""
        assert label not in self.artifacts, f"stage {label} twice"
        given = {role: value for role, value in inputs.items() if value is not None}
        refs = {role: v.ref if isinstance(v, Artifact) else tuple(a.ref for a in v) for role, v in given.items()}
        stage = Stage(label, work, kind, version, recipe, refs, device, self.campaign.code_drift)
        upstream = [a for value in given.values() for a in ([value] if isinstance(value, Artifact) else value)]
        if self.mode == "plan":
            found = self.store.manifest(stage.ref)
            artifact = Artifact(stage, Made(found, cached=True) if found else None, None, upstream)
        elif self.mode == "direct":  # one after another in this thread, without Prefect
            made = produce(stage, self.store, self.runtime, listen=self.listen, cancelled=self.cancelled.is_set)
            self.record.note(label, stage.ref)
            artifact = Artifact(stage, made, None, upstream)
        else:
            from tasks.perform import Order, submit  # Prefect takes two seconds to import, which a plan does not need

            artifact = Artifact(
                stage, None, submit(Order(self, stage), [a.future for a in upstream if a.future]), upstream
            )
        self.artifacts[label] = artifact
        return artifact

    def score_recipe(self) -> Score:
        """Scoring has nothing to choose but the token limits."""
        return Score(limits=self.campaign.limits)

    def reached(self, label: str) -> None:
        """End the run here if it was asked to go only until this version or stage."""
        if self.until == label:
            raise Stopped(label)

    def settle(self) -> None:
        """Wait until everything laid out has ended; raises the first failure."""
        for artifact in self.artifacts.values():
            artifact.made()


def store_url(given: str | None, runtime: Runtime) -> str:
    """The store's URL: the argument, else ROUNDHOUSE_STORE, else the runtime's, else a folder in the project."""
    return given or os.environ.get("ROUNDHOUSE_STORE") or runtime.store or (ROOT / "store").as_uri()


def connect(given: str | None, runtime: Runtime) -> Store:
    """Open the store and make sure that it can be written before any work; from here on logs are kept free of secrets."""
    install_redactor()
    store = open_store(store_url(given, runtime))
    store.check_writable()
    store.check_conditional(required=runtime.require_cas)
    return store
