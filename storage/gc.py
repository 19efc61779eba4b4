"""Garbage collection: removes only what no campaign, alias or resumable work can reach.

A sweep killed at any point is safe. An artifact's manifest goes first, to `trash/`, so that it stops counting
as finished; what is reachable is then determined anew, and only what still is not loses its files.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from storage.attempt import absent, read_manifest, remove_under
from storage.backend import Backend, Entry
from storage.errors import AlreadyExists, Corrupt, NotFound, Refused
from storage.folder import remove_tree
from storage.manifest import encode
from storage.names import Ref
from storage.reach import location, reachable, refs_in, roots
from storage.store import Store

GRACE = 7 * 86400.0  # seconds that something must have lain untouched
_LIVE = 3600.0  # seconds since its last beat for which a lease is taken to be held
_BEAT = re.compile(r"beats/.+/\d{6}\.txt", re.ASCII)


@dataclass(frozen=True)
class Item:
    """Something that a sweep removes: why, its key or folder, and its bytes."""

    kind: str  # artifact | attempt | save points | quarantine | probe
    key: str
    bytes: int


@dataclass(frozen=True)
class Swept:
    """What a sweep removed, or would remove if it was a dry run."""

    items: tuple[Item, ...]
    uploads: int  # transfers that never ended
    kept: int  # artifacts that stay
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes freed."""
        return sum(item.bytes for item in self.items)


def _grouped(entries: Iterable[Entry], depth: int) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups["/".join(entry.key.split("/")[:depth])].append(entry)
    return groups


def _live(backend: Backend, now: float) -> set[str]:
    """Return the keys of leases that somebody holds: not given back, and with a beat less than an hour ago."""
    newest: dict[str, Entry] = {}
    for entry in backend.list("beats"):
        if _BEAT.fullmatch(entry.key):
            key = entry.key.removeprefix("beats/").rpartition("/")[0]
            newest[key] = max(newest.get(key, entry), entry, key=lambda one: one.key)
    held = set()
    for key, entry in newest.items():
        with contextlib.suppress(NotFound):
            if now - entry.modified < _LIVE and not backend.read(entry.key).startswith(b"released"):
                held.add(key)
    return held


class _Garbage:
    """Everything that could go, found from one look at the store."""

    def __init__(self, store: Store, grace: float, unfinished: bool, keep: Mapping[str, float]) -> None:
        self.store, self.backend = store, store.backend
        self.now = self.backend.now()
        self.grace, self.unfinished, self.keep = grace, unfinished, keep
        self.live = _live(self.backend, self.now)
        self.artifacts: list[tuple[Ref, int]] = []
        self.others: list[Item] = []
        self.kept = 0
        points = _grouped(self.backend.list("savepoints"), 3)
        start = roots(store) | {ref for group in points.values() for ref in self._inputs(group)}
        self.reached = reachable(store, start)
        for home, group in sorted(_grouped(self.backend.list("artifacts"), 3).items()):
            self._artifact(home, group)
        for home, group in sorted(points.items()):
            self._points(home, group)
        self._old("quarantine", "quarantine", grace)
        self._old("probe", "probe", min(grace, _LIVE))

    def _inputs(self, group: list[Entry]) -> Iterable[Ref]:
        for entry in group:
            if entry.key.endswith(".json") and entry.key.count("/") == 3:
                with contextlib.suppress(NotFound, Corrupt):
                    yield from refs_in(read_manifest(self.backend, entry.key, entry.key.removesuffix(".json")).record)

    def _old_enough(self, entries: list[Entry], kind: str = "") -> bool:
        grace = self.keep.get(kind, self.grace)
        return all(self.now - entry.modified >= grace for entry in entries)

    def _artifact(self, home: str, group: list[Entry]) -> None:
        key = home.removeprefix("artifacts/")
        try:
            ref = Ref.parse(key)
        except Refused:
            return  # not ours
        if key in self.live:
            self.kept += 1
            return
        try:
            winner = read_manifest(self.backend, location(ref), key).attempt
        except NotFound:
            winner = ""
        except Corrupt:
            self.kept += 1  # running the stage again replaces it
            return
        if winner and ref not in self.reached and self._old_enough(group, ref.kind):
            self.artifacts.append((ref, sum(entry.size for entry in group)))
            return
        self.kept += bool(winner)
        for attempt, entries in _grouped(group, 4).items():
            name = attempt.rpartition("/")[2]
            if name not in ("manifest.json", winner) and self._old_enough(entries):
                self.others.append(Item("attempt", attempt, sum(entry.size for entry in entries)))

    def _points(self, home: str, group: list[Entry]) -> None:
        key = home.removeprefix("savepoints/")
        try:
            finished = self.store.manifest(Ref.parse(key)) is not None
        except Refused:
            return
        if key not in self.live and (finished or (self.unfinished and self._old_enough(group))):
            self.others.append(Item("save points", home, sum(entry.size for entry in group)))

    def _old(self, prefix: str, kind: str, age: float) -> None:
        for entry in self.backend.list(prefix):
            if self.now - entry.modified >= age:
                self.others.append(Item(kind, entry.key, entry.size))


def sweep(
    store: Store,
    *,
    dry_run: bool = True,
    grace: float = GRACE,
    unfinished: bool = False,
    keep: Mapping[str, float] = MappingProxyType({}),
) -> Swept:
    """Remove what nothing can reach and nobody touched for `grace` seconds; with `dry_run` only say what.

    keep: kind of artifact -> seconds for it instead of `grace` (models are large, rows are cheap to keep).
    Save points of stages that never finished are work that could be resumed: they stay unless `unfinished`.
    One sweep at a time: it holds a lease.

    Raises:
        Corrupt, StorageError: what is reachable cannot be told for certain. Nothing was removed.
    """
    if dry_run:
        return _swept(_Garbage(store, grace, unfinished, keep), dry_run=True)
    lease = store.lease("gc/sweep")
    assert lease is not None  # it was not given a reason to stop waiting
    with lease:
        _empty_trash(store)
        garbage = _Garbage(store, grace, unfinished, keep)
        lease.check()
        for ref, _ in garbage.artifacts:
            _to_trash(store, ref)
        _empty_trash(store)
        for item in garbage.others:
            lease.check()
            _remove(store, item)
        _clean_cache(store, garbage)
        return _swept(garbage, dry_run=False)


def _swept(garbage: _Garbage, *, dry_run: bool) -> Swept:
    items = [Item("artifact", ref.key, size) for ref, size in garbage.artifacts] + garbage.others
    uploads = garbage.backend.abandoned(garbage.grace, remove=not dry_run)
    return Swept(tuple(items), uploads, garbage.kept, dry_run)


def _to_trash(store: Store, ref: Ref) -> None:
    """Unfinish an artifact: its manifest moves to `trash/`, whole at every moment in one of the two places."""
    with contextlib.suppress(NotFound):
        manifest = read_manifest(store.backend, location(ref), ref.key)
        store.backend.write(f"trash/{ref.key}/{manifest.attempt}.json", encode(manifest))
        store.backend.delete(location(ref))


def _empty_trash(store: Store) -> None:
    """Remove the artifacts in `trash/`; bring back those that something reaches by now."""
    backend = store.backend
    waiting = list(backend.list("trash"))
    if not waiting:
        return
    reached = reachable(store, roots(store))
    for entry in waiting:
        ref = Ref.parse(entry.key.removeprefix("trash/").rpartition("/")[0])
        try:
            manifest = read_manifest(backend, entry.key, ref.key)
        except (NotFound, Corrupt):
            backend.delete(entry.key)  # its files are an attempt without a manifest, swept after the grace
            continue
        prefix = f"artifacts/{ref.key}/{manifest.attempt}"
        if ref in reached and absent(backend, manifest, prefix) is None:
            with contextlib.suppress(AlreadyExists):  # made anew in the meantime
                backend.create(location(ref), encode(manifest))
        elif not _stands(store, ref, manifest.attempt):
            remove_under(backend, prefix)
            if not list(backend.list(f"artifacts/{ref.key}")):
                _tidy(backend, f"artifacts/{ref.key}")
        backend.delete(entry.key)
    _tidy(backend, "trash")


def _stands(store: Store, ref: Ref, attempt: str) -> bool:
    """Whether this attempt is the finished one: a sweep killed between the two writes of `_to_trash`."""
    try:
        return read_manifest(store.backend, location(ref), ref.key).attempt == attempt
    except (NotFound, Corrupt):
        return False


def _remove(store: Store, item: Item) -> None:
    if item.kind == "save points":
        store.save_points(Ref.parse(item.key.removeprefix("savepoints/"))).drop()
    elif item.kind == "attempt":
        remove_under(store.backend, item.key)
    else:
        store.backend.delete(item.key)


def _tidy(backend: Backend, prefix: str) -> None:
    """Remove empty folders, where there are folders."""
    if backend.folder is not None:
        for folder in sorted((backend.folder / prefix).rglob("*"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            (backend.folder / prefix).rmdir()


def _clean_cache(store: Store, garbage: _Garbage) -> None:
    """Remove drafts that a killed process left in this machine's cache, and copies of what is gone."""
    gone = [store.cache / "artifacts" / ref.key for ref, _ in garbage.artifacts]
    drafts: list[Path] = []
    with contextlib.suppress(FileNotFoundError):
        old = garbage.now - max(garbage.grace, _LIVE)
        drafts = [path for path in (store.cache / "drafts").iterdir() if path.stat().st_mtime < old]
    for path in (*gone, *drafts):
        if path.is_dir():
            remove_tree(path, store.cache)


def forget(store: Store, name: str, digest: str) -> None:
    """Remove a campaign's record, notes first, so that a sweep may remove what only it reached."""
    remove_under(store.backend, f"campaigns/{name}-{digest}")
    store.backend.delete(f"campaigns/{name}-{digest}.json")
