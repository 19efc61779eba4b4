"""The one place where a stage's identity, its reuse and its commit are decided.

A stage is named by its VERSION, the code it runs, its recipe and the names of its inputs. Runtime, host, time and the
store are absent by construction. To produce it: look the manifest up; take the lease; do the work in a child process
that writes into a draft; commit, the manifest last. Only "not found" is a miss.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from configs.fields import Strict
from configs.runtime import SERVED, Runtime
from storage import Draft, Lease, LeaseLost, Manifest, Ref, SavePoint, StorageError, Store, digest
from tasks.code import stage_code
from tasks.launch import Event, OutOfMemory, StageFailed, StageStopped, run_stage
from tasks.trackers import Curve

Inputs = Mapping[str, Ref | Sequence[Ref]]
Listener = Callable[[str, Event], None]

MOST_DEATHS = 10  # runs of a stage that may die one after the other without a save point between them


@dataclass(frozen=True)
class Stage:
    """One piece of work, named but not necessarily done.

    label: what people call it in this campaign ("r2-sample"); not part of the name.
    work: the engine module that does it.  kind: what it makes (model, reward, rows, report).
    device: whether it needs a device slot.
    """

    label: str
    work: str
    kind: str
    version: int
    recipe: Strict
    inputs: Inputs = field(default_factory=dict)
    device: bool = True
    code_drift: str = "recompute"

    @cached_property
    def code(self) -> str:
        """Digest of the code that would run."""
        method = getattr(self.recipe, "method", None)
        return stage_code(self.work, [method] if method else [])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that names the result."""
        return {
            "work": self.work,
            "version": self.version,
            "code": self.code if self.code_drift == "recompute" else "any",
            "recipe": self.recipe.model_dump(mode="json"),
            "inputs": self.input_keys(),
        }

    @cached_property
    def ref(self) -> Ref:
        """The name of the result, known before it exists."""
        return Ref(self.kind, self.work, digest(self.identity))

    def input_keys(self) -> dict[str, str | list[str]]:
        """role -> key, or list of keys."""
        return {
            role: refs.key if isinstance(refs, Ref) else [r.key for r in refs]
            for role, refs in sorted(self.inputs.items())
        }

    def input_refs(self) -> list[Ref]:
        """All inputs, flat."""
        return [ref for refs in self.inputs.values() for ref in ([refs] if isinstance(refs, Ref) else refs)]


@dataclass(frozen=True)
class Made:
    """A finished stage: its manifest, and whether it was there already."""

    manifest: Manifest
    cached: bool

    @property
    def summary(self) -> dict[str, Any]:
        """The small numbers that the work returned."""
        found = self.manifest.record.get("summary")
        return found if isinstance(found, dict) else {}

    def summary_line(self) -> dict[str, Any]:
        """What a listener is told when the stage has ended."""
        return {
            "seconds": self.manifest.record.get("seconds", 0.0),
            "bytes": self.manifest.bytes,
            "key": self.manifest.ref.key,
        }


def finished(stage: Stage, store: Store) -> Made | None:
    """The stage's result if the store has it; save points that a run killed right after the commit left are dropped."""
    found = store.manifest(stage.ref)
    if found is None:
        return None
    store.save_points(stage.ref).drop()
    return Made(found, cached=True)


def produce(
    stage: Stage,
    store: Store,
    runtime: Runtime,
    *,
    listen: Listener = lambda label, event: None,
    cancelled: Callable[[], bool] = lambda: False,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Made:
    """Return the stage's result, doing the work only if the store lacks it.

    guard: held while the lease is taken on a store that ignores create-only writes.

    Raises:
        StageFailed: the work failed; StorageError: the store did. Nothing half-done is visible after either.
    """
    found = finished(stage, store)
    for line in store.news():
        listen(stage.label, {"event": "log", "text": line})
    if found is not None:
        return found
    lease = store.lease(
        stage.ref.key,
        ttl=runtime.lease_ttl,
        beat=runtime.lease_beat,
        on_wait=lambda line: listen(stage.label, {"event": "log", "text": line}),
        until=lambda: cancelled() or store.manifest(stage.ref) is not None,
        guard=guard,
    )
    if lease is None:  # somebody else finished it while we waited
        found = finished(stage, store)
        if found is None:
            raise StageFailed(f"{stage.label}: cancelled while another run works on it")
        return found
    with lease:
        found = finished(stage, store)
        if found is not None:
            return found
        return Made(_work(stage, store, runtime, lease, listen, cancelled), cached=False)


def _work(
    stage: Stage, store: Store, runtime: Runtime, lease: Lease, listen: Listener, cancelled: Callable[[], bool]
) -> Manifest:
    if stage.work not in SERVED:  # recorded as it is done
        runtime = runtime.model_copy(update={"sampler": "builtin"})
    draft = store.draft(stage.ref)
    beside = draft.path / "_beside"
    beside.mkdir(parents=True, exist_ok=True)
    saves = store.save_points(stage.ref)
    point = saves.latest()
    deaths = lease.begin(point.step if point else 0) - 1
    if deaths >= MOST_DEATHS:
        raise StageFailed(
            f"{stage.label}: {deaths} runs in a row died at step {point.step if point else 0} before the next save point; "
            "look at what kills them (memory?), save more often, or run again to try once more"
        )
    spec = _spec(stage, store, runtime, lease, draft, point)
    timings: list[Event] = []
    curve = Curve(
        beside,
        runtime,
        stage.label,
        stage.ref.key,
        spec["recipe"],
        lambda text: listen(stage.label, {"event": "log", "text": text}),
    )
    if point:
        curve.known(point.path / "metrics.jsonl")

    def hear(event: Event) -> None:
        if event["event"] == "timing":
            timings.append({k: v for k, v in event.items() if k != "event"})
        if event["event"] == "metrics":
            curve.write(int(event["step"]), {k: v for k, v in event.items() if k not in ("event", "step")})
        if event["event"] in ("progress", "saved"):
            lease.step = int(event["done" if event["event"] == "progress" else "step"])
        listen(stage.label, event)

    def stop() -> str | None:
        if lease.lost.is_set():
            return "lost its lease to another run, which now does the work"
        return "cancelled" if cancelled() else None

    began = time.time()
    done: Event = {}
    try:
        done = run_stage(spec, log=beside / "log.txt", listen=hear, stop=stop, timeout=runtime.timeout_seconds)
    except OutOfMemory as error:
        if point is None:
            raise
        keeps = f"its save points keep what it began with: remove {store.url}/savepoints/{stage.ref.key} to change that"
        raise OutOfMemory(f"{error}; {keeps}") from error
    except LeaseLost as error:
        raise StageFailed(f"{stage.label}: {error}") from error
    except StageStopped:
        raise
    except StageFailed as error:
        raise type(error)(str(error).replace(str(draft.path), _given_up(draft))) from error
    finally:
        curve.close(bool(done))
    record = {
        **_provenance(stage, runtime),
        "summary": done["summary"],
        "pace": done.get("pace"),
        "seconds": round(done["seconds"], 3),
        "cpu_seconds": round(done["cpu_seconds"], 3),
        "peak_bytes": done["peak_bytes"],
        **({"processes": done["processes"]} if "processes" in done else {}),
        "began": began,
        "timings": timings,
    }
    manifest = draft.commit(record, lease)
    saves.drop()
    return manifest


def _spec(
    stage: Stage, store: Store, runtime: Runtime, lease: Lease, draft: Draft, point: SavePoint | None
) -> dict[str, Any]:
    """What the child process is told."""
    return {
        "stage": stage.work,
        "label": stage.label,
        "recipe": stage.recipe.model_dump(mode="json"),
        "inputs": stage.input_keys(),
        "store": store.url,
        "ref": stage.ref.key,
        "epoch": lease.epoch,
        "out": str(draft.path),
        "runtime": {**runtime.model_dump(mode="json"), **_numerics_so_far(point)},
    }


def _given_up(draft: Draft) -> str:
    """Where a failed attempt's log and evidence are: in the store, or here if that cannot be reached."""
    try:
        return draft.give_up()
    except StorageError:
        return str(draft.path)


def _numerics_so_far(point: SavePoint | None) -> dict[str, Any]:
    """A stage that was begun keeps the numerics it began with, so that its bytes do not depend on where it resumes."""
    return dict(point.record.get("numerics", {})) if point else {}


def _provenance(stage: Stage, runtime: Runtime) -> dict[str, Any]:
    """Recorded beside the name, never in it."""
    return {
        "label": stage.label,
        "identity": stage.identity,
        "code": stage.code,
        "numerics": runtime.numerics(),
        "versions": {
            name: package_version(name) for name in ("torch", "transformers", "datasets", "prefect", "deepspeed")
        },
        "python": platform.python_version(),
        "machine": platform.machine(),
        "host": platform.node(),
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "git": _commit(),
    }


def _commit() -> str:
    """The checked-out commit, read without starting git; empty when this is no checkout."""
    git = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return ""
