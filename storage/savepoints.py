"""Save points of a running stage: the last two, each committed like an artifact.

`savepoints/<kind>/<name>-<digest>/<n>.json` are numbered manifests, n rising by one. There is no pointer to
the latest: a listing and a hint say where to begin looking, the manifests and hashes decide.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.attempt import (
    Fence,
    fresh_name,
    local_copy,
    place_manifest,
    read_manifest,
    remove_under,
    scan,
    send,
)
from storage.errors import AlreadyExists, Corrupt, NotFound, StorageError, unwritable
from storage.folder import make_folder, remove_tree
from storage.manifest import Manifest
from storage.names import Ref

if TYPE_CHECKING:
    from storage.store import Store

_KEEP = 2
_NUMBER = re.compile(r"\d{6}\.json", re.ASCII)


@dataclass(frozen=True)
class SavePoint:
    """A verified save point: the step it was taken at, its record, and a local folder with its files."""

    step: int
    record: dict[str, Any]  # Any: JSON chosen by the stage
    path: Path


class SavePoints:
    """The save points of one stage. The holder of the stage's lease is the only writer."""

    def __init__(self, store: Store, ref: Ref, lease: Fence | None = None) -> None:
        self._store, self._ref, self._lease = store, ref, lease
        self._home = f"savepoints/{ref.key}"
        self._last: int | None = None
        self._open: set[str] = set()  # attempts of this process that are not committed yet

    def _location(self, number: int) -> str:
        return f"{self._home}/{number:06d}.json"

    def folder(self) -> Path:
        """Return a fresh local folder for `save`; on a folder store nothing is copied then."""
        attempt = fresh_name()
        self._open.add(attempt)
        root = self._store.backend.folder
        path = root / self._home / attempt if root is not None else self._store.cache / "drafts" / attempt
        try:
            make_folder(self._store.cache if root is None else root, 0o700)
            make_folder(path)
        except OSError as err:
            raise unwritable(err, path) from err
        return path

    def save(self, step: int, folder: Path, record: dict[str, Any]) -> None:
        """Commit the files in `folder` as the newest save point, then drop all but the last two.

        A folder that came from `.folder()` is used up; any other is copied and left alone.

        Raises:
            LeaseLost: another process has taken over, perhaps just after this point was published.
        """
        if type(step) is not int or step < 0:
            raise ValueError(f"step {step!r}: want a count of steps")
        if self._lease is not None:
            self._lease.check()
        backend = self._store.backend
        if folder.name not in self._open:
            folder = self._adopt(folder)
        attempt = folder.name
        names, _ = scan(folder)
        files = {name: send(backend, folder, name, f"{self._home}/{attempt}") for name in names}
        number = self._newest() if self._last is None else self._last
        while True:
            number += 1
            key = f"{self._home}/{number:06d}"
            manifest = Manifest(key, attempt, files, {"step": step, "record": record})
            try:
                place_manifest(backend, self._location(number), manifest, self._lease)
                break
            except AlreadyExists:
                continue  # a listing that was not complete, or a torn one: numbers are never reused
        self._last = number
        self._open.discard(attempt)
        if backend.folder is None:
            remove_tree(folder, self._store.cache)
        backend.write(f"{self._home}/newest.txt", str(number).encode())
        if self._lease is not None:
            self._lease.check()  # what lies there may be a successor's by now
        self._trim(number)

    def _adopt(self, folder: Path) -> Path:
        path = self.folder()
        try:
            shutil.copytree(folder, path, dirs_exist_ok=True, symlinks=True)
        except shutil.Error as err:
            raise StorageError(f"{folder}: cannot be copied: {err.args[0]}") from err
        except OSError as err:
            raise unwritable(err, path) from err
        return path

    def _numbers(self) -> list[int]:
        found = (entry.key.rpartition("/")[2] for entry in self._store.backend.list(self._home, deep=False))
        return sorted(int(name[:6]) for name in found if _NUMBER.fullmatch(name))

    def _newest(self) -> int:
        """Return the highest number in use, 0 if there is none: hints, then one look after the other upward."""
        backend = self._store.backend
        hints = {0, *self._numbers()}
        try:
            hint = backend.read(f"{self._home}/newest.txt")
            if hint.isdigit() and len(hint) <= 6:
                hints.add(int(hint))
        except NotFound:
            pass
        for number in sorted(hints, reverse=True):
            if number == 0 or backend.size(self._location(number)) is not None:
                break
        while backend.size(self._location(number + 1)) is not None:
            number += 1
        return number

    def _trim(self, newest: int) -> None:
        """Drop what is older than the last two whole save points, manifests first; also attempts that died."""
        backend = self._store.backend
        kept: list[str] = []
        # the third newest by its number, too: a listing that misses it while the next one shows its files would tear it
        for number in sorted({*self._numbers(), newest, newest - 1, newest - 2}, reverse=True):
            if number < 1:
                continue
            try:
                stored = read_manifest(backend, self._location(number), f"{self._home}/{number:06d}")
            except NotFound:
                continue
            except Corrupt:
                if number < newest:
                    backend.delete(self._location(number))
                continue
            if len(kept) < _KEEP:
                kept.append(stored.attempt)
            else:
                backend.delete(self._location(number))
        safe = tuple(f"{self._home}/{attempt}/" for attempt in (*kept, *self._open))
        remove_under(backend, self._home, keep=lambda key: key.startswith(safe) or key.count("/") == 3)
        if backend.folder is not None:
            with os.scandir(backend.folder / self._home) as found:
                dead = [Path(item.path) for item in found if item.is_dir() and item.name not in (*kept, *self._open)]
            for path in dead:
                remove_tree(path, path.parent)
        elif (cached := self._store.cache / self._home).is_dir():
            for path in cached.iterdir():
                if path.name not in kept:
                    remove_tree(path, path.parent)

    def latest(self) -> SavePoint | None:
        """Return the newest save point whose bytes are whole, or None. What was passed over is in `store.warnings`."""
        newest = self._newest()
        for number in sorted({*self._numbers(), newest, newest - 1, newest - 2}, reverse=True):
            if not 1 <= number <= newest:
                continue
            key = f"{self._home}/{number:06d}"
            try:
                stored = read_manifest(self._store.backend, self._location(number), key)
                step, record = stored.record.get("step"), stored.record.get("record")
                if type(step) is not int or not isinstance(record, dict):
                    raise Corrupt(f"{key}: not a save point")
                path = local_copy(self._store.backend, stored, f"{self._home}/{stored.attempt}", self._store.cache)
            except NotFound:
                continue
            except Corrupt as err:
                self._store.warn(f"save point {number} of {self._ref.key}: {err}; falling back to the one before")
                continue
            return SavePoint(step, record, path)
        return None

    def drop(self) -> None:
        """Remove all save points, manifests first. Call it when the stage's artifact is committed."""
        backend = self._store.backend
        numbers = self._numbers()
        newest = max(numbers, default=0) if self._last is None else self._last
        for number in sorted({*numbers, *range(max(1, newest - _KEEP), newest + 1)}, reverse=True):  # see `_trim`
            backend.delete(self._location(number))
        remove_under(backend, self._home)
        if backend.folder is None:
            remove_tree(self._store.cache / self._home, self._store.cache)
        self._last = None
