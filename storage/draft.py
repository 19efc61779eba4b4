"""A draft: an artifact in the making, invisible until `commit`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.attempt import (
    Fence,
    absent,
    altered,
    fresh_name,
    place_manifest,
    quarantine,
    read_manifest,
    remove_under,
    scan,
    send,
    suspect_key,
)
from storage.errors import AlreadyExists, Corrupt, LeaseLost, NotFound, StorageError, unwritable
from storage.folder import make_folder, remove_tree
from storage.manifest import Manifest
from storage.names import BESIDE, Ref

if TYPE_CHECKING:
    from storage.store import Store


class Draft:
    """An empty local folder `path` to write results into; on a folder store it is where they will stay.

    Files under `_beside/` (logs, times) are kept with the artifact but stay outside its digests.
    """

    def __init__(self, store: Store, ref: Ref) -> None:
        self._store, self.ref = store, ref
        self._home = f"artifacts/{ref.key}"
        self._attempt = fresh_name()
        self._prefix = f"{self._home}/{self._attempt}"
        root = store.backend.folder
        self.path: Path = root / self._prefix if root is not None else store.cache / "drafts" / self._attempt
        try:
            make_folder(store.cache if root is None else root, 0o700)
            make_folder(self.path)
        except OSError as err:
            raise unwritable(err, self.path) from err

    def commit(self, record: dict[str, Any], lease: Fence | None = None) -> Manifest:
        """Store every file, verify what was stored, and publish the manifest; return the one that counts.

        The first committer wins: if a whole manifest of this name is there already, this attempt is
        removed and that one returned. One that is torn, or whose files are gone, is replaced, which
        needs the lease.

        Raises:
            LeaseLost: another process has taken over; nothing was published.
            Refused: a file name or format that is not taken. Corrupt: stored bytes differ from written ones.
        """
        backend = self._store.backend
        if lease is not None:
            lease.check()  # before the files are looked at: a successor may have cleaned them away
        try:
            names, beside = scan(self.path)
        except StorageError:
            if (stored := self._first()) is not None:
                return stored  # whoever came first, its lease lost meanwhile, has cleaned this draft away
            raise
        files = {name: send(backend, self.path, name, self._prefix) for name in names}
        for name in beside:
            backend.upload(self.path / name, f"{self._prefix}/{name}")
        manifest = Manifest(self.ref.key, self._attempt, files, record, tuple(beside))
        stored = self._publish(manifest, lease)
        if stored.attempt != self._attempt:
            remove_under(backend, self._prefix)
        elif problem := absent(backend, stored, self._prefix):
            raise Corrupt(f"{problem}, although it was just committed; is something else cleaning this store?")
        if lease is not None:
            with contextlib.suppress(LeaseLost):  # published, but what else lies there may be a successor's
                lease.check()
                self._clean(stored.attempt)
        if backend.folder is None:
            self._forget()
        return stored

    def _publish(self, manifest: Manifest, lease: Fence | None) -> Manifest:
        backend, location = self._store.backend, f"{self._home}/manifest.json"
        for _ in range(3):
            try:
                return place_manifest(backend, location, manifest, lease)
            except AlreadyExists:
                stored, problem = self._rival(location)
            if stored is not None:
                return stored
            if lease is None:
                raise Corrupt(f"{problem}; replacing it needs the lease of {self.ref.key}, which this commit lacks")
            lease.check()
            self._store.warn(f"{self.ref.key}: {problem}; set aside and replaced")
            quarantine(backend, location, problem)
        raise StorageError(f"{backend.url}/{location}: something keeps writing unusable manifests here")

    def _rival(self, location: str) -> tuple[Manifest | None, str]:
        """Return the manifest that was there first if it and its files are whole, and else what is wrong."""
        backend = self._store.backend
        try:
            stored = read_manifest(backend, location, self.ref.key)
        except Corrupt as err:
            return None, str(err)
        if problem := altered(backend, stored, f"{self._home}/{stored.attempt}"):
            return None, problem
        # Whole after all: a reader's mark would hide it for ever.
        backend.delete(suspect_key(self.ref.key, stored.attempt))
        return stored, ""

    def _first(self) -> Manifest | None:
        """Return the whole manifest that is there already, None if there is none."""
        with contextlib.suppress(NotFound):
            return self._rival(f"{self._home}/manifest.json")[0]
        return None

    def _clean(self, winner: str) -> None:
        """Remove the attempts that died; only the holder of the lease may."""
        backend = self._store.backend
        kept = (f"{self._home}/manifest.json", f"{self._home}/{winner}/")
        remove_under(backend, self._home, keep=lambda key: key.startswith(kept))
        if backend.folder is not None:
            with os.scandir(backend.folder / self._home) as found:
                dead = [Path(item.path) for item in found if item.is_dir() and item.name != winner]
            for folder in dead:
                remove_tree(folder, folder.parent)

    def _forget(self) -> None:
        remove_tree(self.path, self._store.cache)

    def give_up(self) -> str:
        """Keep what a failed attempt has written beside its results (log, evidence) and return where the attempt is.

        A store elsewhere gets these files; they go when another attempt of this name is committed.
        """
        backend = self._store.backend
        if backend.folder is not None:
            return str(self.path)
        for path in sorted((self.path / BESIDE).rglob("*")):
            if path.is_file():
                backend.upload(path, f"{self._prefix}/{path.relative_to(self.path).as_posix()}")
        return f"{backend.url}/{self._prefix}"

    def discard(self) -> None:
        """Remove everything that this draft has stored or written."""
        remove_under(self._store.backend, self._prefix)
        self._forget()
