"""The store: finished artifacts, leases, save points and campaign records under one URL."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from storage.attempt import absent, fresh_name, local_copy, read_manifest, suspect_key
from storage.backend import Backend
from storage.campaign import CampaignRecord, campaign_names, read_aliases, write_alias
from storage.capabilities import Capabilities, measure, unconditional
from storage.draft import Draft
from storage.errors import Corrupt, NotFound, Refused, StorageError
from storage.folder import FolderBackend
from storage.lease import Guard, Holder, Lease, acquire
from storage.manifest import Manifest
from storage.names import Ref, check_key, check_segment
from storage.savepoints import SavePoints

_Keys = list[str]  # in the class below, `list` is the method
_Names = list[tuple[str, str]]


class Store:
    """One store. Cheap to make; make a new one in every process, also after a fork."""

    def __init__(self, backend: Backend, cache: Path) -> None:
        self.backend = backend
        self.cache = cache
        self.warnings: list[str] = []
        self._told = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        return self.backend.url

    @property
    def retries(self) -> int:
        """How many requests had to be repeated so far."""
        return self.backend.retries

    @property
    def conditional(self) -> bool:
        """Whether the store honours create-only writes; found out by trying, once."""
        return self.backend.conditional

    def warn(self, line: str) -> None:
        """Record something that was repaired or passed over, once."""
        if line not in self.warnings:
            self.warnings.append(line)

    def news(self) -> _Keys:
        """Return the warnings that were not returned before, for whoever shows a run's log."""
        with self._lock:
            lines = self.warnings[self._told :]
            self._told = len(self.warnings)
        return lines

    def check_conditional(self, *, required: bool) -> None:
        """Warn if the store ignores create-only writes, which keep two runs of a stage apart; raise if `required`."""
        if not self.conditional:
            if required:
                raise StorageError(
                    f"{unconditional(self.url)}; leave out --require-cas, or set runtime.require_cas to false, to use it "
                    "all the same"
                )
            self.warn(unconditional(self.url))

    def check_writable(self) -> None:
        """Write, read back and remove a small object. Raises `Unwritable` with advice."""
        key, data = f"probe/{fresh_name()}", secrets.token_bytes(32)
        self.backend.write(key, data)
        try:
            if self.backend.read(key) != data:
                raise Corrupt(f"{self.url}: a small object was read back altered; the store cannot be trusted")
        finally:
            self.backend.delete(key)

    def hurry(self, seconds: float) -> None:
        """Repeat requests that fail for so long only; for those who ask whether the store is there."""
        self.backend.hurry(seconds)

    def capabilities(self) -> Capabilities:
        """Try the store out and return what it can do, in a second or so. Raises `Unwritable` with advice."""
        return measure(self.backend, self.check_writable)

    # Objects

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what is there."""
        self.backend.write(check_key(key), data)

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist with other bytes. Put a nonce in `data` to know who wrote it.

        Raises:
            AlreadyExists: the key holds something else.
        """
        self.backend.create(check_key(key), data)

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises `NotFound`."""
        return self.backend.read(check_key(key))

    def exists(self, key: str) -> bool:
        """Whether an object is there; any answer but "not found" and "found" is an error."""
        return self.backend.size(check_key(key)) is not None

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self.backend.delete(check_key(key))

    def list(self, prefix: str) -> _Keys:
        """Return the keys under a folder at any depth, sorted. A hint: nothing may depend on it being complete."""
        return sorted(entry.key for entry in self.backend.list(check_key(prefix)))

    # Artifacts

    def manifest(self, ref: Ref) -> Manifest | None:
        """Return the manifest of a finished artifact, None if it is not there or cannot be used.

        Unusable (a torn manifest, a file that is gone or has another size, a file that a reader found
        altered) counts as not there, with the reason in `warnings`. Any other failure raises.
        """
        found, problem = self._lookup(ref)
        if problem:
            self.warn(problem)
        return found

    def _lookup(self, ref: Ref) -> tuple[Manifest | None, str]:
        try:
            found = read_manifest(self.backend, f"artifacts/{ref.key}/manifest.json", ref.key)
        except NotFound:
            return None, ""
        except Corrupt as err:
            return None, f"{err}; it will be made anew"
        if problem := absent(self.backend, found, f"artifacts/{ref.key}/{found.attempt}"):
            return None, f"{ref.key}: {problem}; it will be made anew"
        if self.backend.size(suspect_key(ref.key, found.attempt)) is not None:
            return None, f"{ref.key}: attempt {found.attempt} was found altered by a reader; it will be made anew"
        return found, ""

    def fetch(self, ref: Ref) -> Path:
        """Return a local folder with the artifact's files, every one hashed now. Treat it as read-only.

        Raises:
            NotFound: no such artifact. Corrupt: a file is missing or altered (named); the artifact then
            no longer counts as finished, so that running its stage again makes it anew.
        """
        found, problem = self._lookup(ref)
        if found is None:
            if problem:
                raise Corrupt(problem)
            raise NotFound(f"{self.url}: no artifact {ref.key}; run the stage that makes it")
        try:
            return local_copy(self.backend, found, f"artifacts/{ref.key}/{found.attempt}", self.cache)
        except Corrupt as err:
            with contextlib.suppress(StorageError):  # a reader without the right to write still reports what it saw
                self.backend.create(suspect_key(ref.key, found.attempt), f"{err}\n".encode())
            raise Corrupt(f"{ref.key}: {err}; run its stage again to make it anew") from None

    def draft(self, ref: Ref) -> Draft:
        """Begin an artifact: write files into `.path`, then `.commit` or `.discard`."""
        return Draft(self, ref)

    # Work in progress

    def lease(
        self,
        key: str,
        *,
        ttl: float = 90.0,
        beat: float = 20.0,
        until: Callable[[], bool] | None = None,
        on_wait: Callable[[str], None] | None = None,
        guard: Guard = contextlib.nullcontext,
    ) -> Lease | None:
        """Wait for the lease on `key` and return it, or None once `until()` is true (the result has appeared).

        `ttl` and `beat` in seconds. `on_wait` gets one line when the wait begins and every 30 s. `guard` is held while the
        lease is taken on a store without conditions.
        """
        return acquire(self.backend, key, ttl=ttl, beat=beat, until=until, on_wait=on_wait, guard=guard)

    def holder(self, key: str, epoch: int) -> Holder:
        """Return the fence of a lease that another process holds: give a child its parent's `lease.epoch`."""
        return Holder(self.backend, key, epoch)

    def save_points(self, ref: Ref, lease: Lease | Holder | None = None) -> SavePoints:
        """Return the save points of the stage that makes `ref`; only the holder of its lease may save."""
        return SavePoints(self, ref, lease)

    # Campaigns and hints

    def campaign(self, name: str, digest: str) -> CampaignRecord:
        """Return the record of a campaign, which may not exist yet."""
        return CampaignRecord(self.backend, name, digest)

    def campaigns(self) -> _Names:
        """Return (name, digest) of every campaign that a listing shows, sorted."""
        return campaign_names(self.backend)

    def put_alias(self, name: str, ref: Ref) -> None:
        """Give an artifact a name that keeps it: garbage collection spares it and what it was made of."""
        write_alias(self.backend, name, ref)

    def aliases(self) -> dict[str, Ref]:
        """Return the named artifacts."""
        return read_aliases(self.backend)

    def put_state(self, name: str, data: bytes) -> None:
        """Keep a small mutable hint, such as the last run's id. Nothing may depend on it."""
        self.backend.write(f"state/{check_segment(name)}", data)

    def get_state(self, name: str) -> bytes | None:
        """Return a hint, None if it was never put."""
        try:
            return self.backend.read(f"state/{check_segment(name)}")
        except NotFound:
            return None

    def close(self) -> None:
        """Close connections. The store is not used afterwards."""
        self.backend.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: Any) -> None:  # Any: an exception triple that is passed on untouched
        self.close()


def open_store(url: str | Path, *, cache: str | Path | None = None) -> Store:
    """Open the store at `url`: `file:///folder`, a plain path, or `s3://bucket/prefix`.

    S3 settings come from the environment and the AWS profile alone (AWS_ENDPOINT_URL_S3 or
    AWS_ENDPOINT_URL, AWS_REGION, credentials by botocore's chain, ROUNDHOUSE_S3_SSE as JSON). `cache`
    holds verified copies of what an object store has; default ROUNDHOUSE_CACHE or ~/.cache/roundhouse.

    Raises:
        Refused: another scheme, a chain, a user or a query in the URL.
    """
    backend = _backend(str(url))
    home = Path(cache or os.environ.get("ROUNDHOUSE_CACHE") or Path.home() / ".cache" / "roundhouse")
    return Store(backend, home.expanduser().absolute() / hashlib.sha256(backend.url.encode()).hexdigest()[:16])


def _backend(url: str) -> Backend:
    want = "want file:///folder, a path, or s3://bucket/prefix"
    if not url or "::" in url or any(ord(char) < 32 or ord(char) == 127 for char in url):
        raise Refused(f"store {url[:120]!a}: {want}")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
        return FolderBackend(Path(url).expanduser())
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise Refused(f"store {parts.scheme}://...: no user, query or fragment in a store URL; {want}")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Refused(f"store {url}: {want}")
        return FolderBackend(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from storage.s3 import S3Backend  # 0.4 s of imports that a folder store does not need

        return S3Backend(parts.netloc, parts.path.strip("/"))
    raise Refused(f"store scheme {parts.scheme}: {want}")
