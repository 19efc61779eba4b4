"""What a store needs from the place where its bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """One object of a listing: its key, bytes, and the time of its last write in the server's seconds."""

    key: str
    size: int
    modified: float


class Backend(Protocol):
    """Bytes under keys. Every method raises a `StorageError` or succeeds; keys were checked by the caller."""

    url: str
    folder: Path | None  # the root on this machine's disk; None for object storage

    @property
    def retries(self) -> int:
        """How many requests were repeated so far."""
        ...

    @property
    def conditional(self) -> bool:
        """Whether two creators of one key get exactly one winner, found out by trying."""
        ...

    def hurry(self, seconds: float) -> None:
        """Repeat requests that fail for so long only."""
        ...

    def read(self, key: str) -> bytes:
        """Return an object's bytes. Raises `NotFound`."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put `data` under `key` whether or not something is there; readers see old or new bytes only."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put `data` under `key` if it is free; return when the key holds `data`, raise `AlreadyExists` otherwise."""
        ...

    def size(self, key: str) -> int | None:
        """Return an object's bytes, or None if and only if the store says that it is not there."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is removed already."""
        ...

    def list(self, prefix: str, *, deep: bool = True) -> Iterator[Entry]:
        """Yield what lies under the folder `prefix` (deep: at any depth). A hint: entries may be missing."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Copy a local file to `key`; the caller reads it back."""
        ...

    def download(self, key: str, path: Path) -> str:
        """Copy an object to a local file, in place; return the SHA-256 of what that then holds. Raises `NotFound`."""
        ...

    def hash(self, key: str) -> str:
        """Return the SHA-256 of the bytes that a reader of `key` gets now. Raises `NotFound`."""
        ...

    def now(self) -> float:
        """Return the time by the clock that stamps `Entry.modified`, in seconds."""
        ...

    def abandoned(self, age: float, *, remove: bool) -> int:
        """Return how many transfers began more than `age` seconds ago and never ended; clean them up if asked."""
        ...

    def close(self) -> None:
        """Let go of connections; the backend is not used afterwards."""
        ...
