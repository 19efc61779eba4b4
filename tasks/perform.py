"""The Prefect side of a stage: one task run each, Cached when the store had the result, with a device slot held."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import httpx
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Completed

from tasks.launch import Event, StageDied, StageStopped
from tasks.stage import Made, Stage, finished, produce

if TYPE_CHECKING:
    from tasks.run import Run

LIMIT = "roundhouse-device-{}"  # a Prefect global concurrency limit a device, made by `make up`
TAKING = "roundhouse-taking"  # another, of one slot: held while a lease is taken on a store without conditions
PATIENCE = 1800.0  # seconds to go on asking a server that is too busy for a device
RETRIES = 2  # of a stage whose process was killed; memory that is really too small ends in an error soon


class Order:
    """A stage of a run that is to be done; opaque to Prefect, which would walk a dataclass looking for futures."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run, self.stage = run, stage


def submit(order: Order, after: Sequence[PrefectFuture[Any]]) -> PrefectFuture[Made]:
    """Hand the stage to the flow's task runner; it starts when `after` have succeeded."""
    named = _perform.with_options(name=order.stage.work, task_run_name=order.stage.label)
    return named.submit(order, wait_for=list(after))  # type: ignore[call-overload, no-any-return]  # a task that returns a State yields its data


def died(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether a stage's process was killed: then it is tried again, from its last save point, and only then.

    What a stage says itself (bad data, a loss that is not finite) would only be said again.
    """
    try:
        state.result()
    except StageDied:
        return True
    except Exception:
        return False
    return False


@task(cache_policy=NO_CACHE, persist_result=False, retries=RETRIES, retry_delay_seconds=1, retry_condition_fn=died)
def _perform(order: Order) -> State[Made]:
    """Return what the stage makes, working only if the store lacks it."""
    stage = order.stage
    made = finished(stage, order.run.store)
    if made is None:
        with _slot(order):
            made = _produce(order)
    with order.run.lock:  # notes build on each other
        order.run.record.note(stage.label, stage.ref)
    order.run.listen(stage.label, {"event": "cached" if made.cached else "made", **made.summary_line()})
    if made.cached:
        return Completed(name="Cached", message=stage.ref.key, data=made)
    return Completed(message=stage.ref.key, data=made)


def _produce(order: Order) -> Made:
    try:
        return produce(
            order.stage,
            order.run.store,
            order.run.runtime,
            listen=_Narrator(order).hear,
            cancelled=order.run.cancelled.is_set,
            guard=lambda: _taking(order),
        )
    except StageDied as error:
        if order.run.cancelled.is_set():  # we have ended it ourselves
            raise StageStopped(f"{order.stage.label}: cancelled") from error
        raise


@contextlib.contextmanager
def _slot(order: Order) -> Iterator[None]:
    """Hold a device slot of this run and, under a server, the device's strict leased limit."""
    if not order.stage.device:
        yield
        return
    slot = order.run.slots.get()
    try:
        if _has_server():
            time.sleep(0.1)  # at once, the server is still writing this task's events: SQLite is locked, 503, 2 s lost
            with _device(LIMIT.format(slot), order.run.cancelled.is_set):
                yield
        else:
            yield
    finally:
        order.run.slots.put(slot)


@contextlib.contextmanager
def _taking(order: Order) -> Iterator[None]:
    """Keep the runs of one server apart for the moment in which a stage's lease is taken; the lease does the rest."""
    if _has_server():
        with _device(TAKING, order.run.cancelled.is_set):
            yield
    else:
        yield


@contextlib.contextmanager
def _device(name: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold a device's leased limit.

    A server that is too busy to answer is asked again: while another run held the device, a 503 after two minutes of
    asking failed the run that waited (measured with two runs on a machine with a load of 30).
    """
    with contextlib.ExitStack() as held:
        began = time.monotonic()
        while True:
            try:
                held.enter_context(concurrency(name, occupy=1, strict=True, lease_duration=60))
                break
            except ConcurrencySlotAcquisitionError as error:
                if not busy(error) or cancelled() or time.monotonic() - began > PATIENCE:
                    raise
                get_run_logger().warning("%s; asking again", error)
                time.sleep(2.0)
        yield


def busy(error: BaseException) -> bool:
    """Whether the server did not answer or said that it cannot now; a limit that does not exist is another matter."""
    cause = error.__cause__
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code >= 500
    return isinstance(cause, httpx.TransportError)


def _has_server() -> bool:
    return os.environ.get("ROUNDHOUSE_DEVICE_LIMITS") == "1"


class _Narrator:
    """Carries a stage's events to the run's log, the progress artifact and whoever else listens."""

    def __init__(self, order: Order) -> None:
        self.order, self.logger = order, get_run_logger()
        self.progress: Any = None
        self.shown, self.began = -1.0, time.monotonic()

    def hear(self, label: str, event: Event) -> None:
        self.order.run.listen(label, event)
        kind = event["event"]
        if kind == "progress":
            self._progress(100.0 * event["done"] / max(event["total"], 1), label)
        elif kind in ("log", "output") and event.get("text"):
            self.logger.info("%s | %s", label, event["text"])
        elif kind == "metrics" and _has_server():
            shown = ", ".join(f"{k} {v:.4g}" for k, v in event.items() if k not in ("event", "step"))
            self.logger.debug("%s | step %s: %s", label, event["step"], shown)

    def _progress(self, percent: float, label: str) -> None:
        """Progress artifacts cost 9 ms each: only every tenth part, and only where somebody can look at them."""
        if not _has_server() or percent < self.shown + 10.0:
            return
        self.shown = percent
        if self.progress is None:
            self.progress = create_progress_artifact(
                percent,
                key=f"{self.order.run.campaign.name}-{label.lower()}",
                description=f"{label} of {self.order.run.campaign.name}",
            )
        else:
            update_progress_artifact(self.progress, percent)
