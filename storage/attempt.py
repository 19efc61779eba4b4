"""Attempts: the files of a result that is being made or was made, and the manifest that finishes them."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from storage.backend import Backend
from storage.errors import Corrupt, NotFound, Refused, StorageError, unwritable
from storage.folder import make_folder, remove_tree
from storage.formats import check_content, check_name
from storage.manifest import FileInfo, Manifest, decode, encode
from storage.names import BESIDE, check_key, sha256_file

_OWN = re.compile(r"\.(part-[0-9a-f]{16}|nfs[0-9a-f]+)", re.ASCII)  # left by a fetch that was killed, or by NFS
_TRIES = 4  # of a transfer whose bytes arrive altered; only the wire can explain a difference that goes away


class Fence(Protocol):
    """What publishing asks: whether this process still holds the work."""

    def check(self) -> None:
        """Raise `LeaseLost` if another process has taken over."""
        ...


def fresh_name() -> str:
    """Return a folder name never used before; the time in it is for people."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(6)}"


def scan(folder: Path) -> tuple[list[str], list[str]]:
    """Return the result files and the files beside them in `folder`, as sorted relative names.

    Raises:
        Refused: a name that cannot be a key, or an extension of an open format.
        StorageError: a link, a pipe or another thing that is not a file; no folder; no file.
    """
    files: list[str] = []
    beside: list[str] = []
    try:
        for parent, folders, names in os.walk(folder):
            for name in folders + names:
                path = Path(parent, name)
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise StorageError(f"{path}: only regular files can be stored, no links or devices")
            for name in names:
                key = Path(parent, name).relative_to(folder).as_posix()
                check_key(key)
                check_name(key)
                (beside if key.startswith(f"{BESIDE}/") else files).append(key)
    except OSError as err:
        raise unwritable(err, folder) from err
    if not files:
        raise StorageError(f"{folder}: nothing to commit, the folder has no result file")
    return sorted(files), sorted(beside)


def send(backend: Backend, folder: Path, name: str, prefix: str) -> FileInfo:
    """Store one file of an attempt and return its facts, after the stored bytes were read back and hashed."""
    path, key = folder / name, f"{prefix}/{name}"
    try:
        check_content(path, name)
        if backend.folder is not None and backend.folder / key == path:
            info = FileInfo(sha256_file(path), path.stat().st_size)  # where it lies
            backend.upload(path, key)
            return info
        with ThreadPoolExecutor(1) as pool:
            wanted, found = pool.submit(sha256_file, path), ""  # beside the transfer
            for _ in range(_TRIES):
                backend.upload(path, key)
                try:
                    found = backend.hash(key)
                except NotFound:
                    found = "nothing"
                if found == wanted.result():
                    return FileInfo(found, path.stat().st_size)
            raise Corrupt(f"{backend.url}/{key}: read back {found}, wrote {wanted.result()}, {_TRIES} times")
    except OSError as err:
        raise unwritable(err, path) from err


def read_manifest(backend: Backend, location: str, key: str) -> Manifest:
    """Return the manifest stored at `location` if it is whole and belongs to `key`.

    Raises:
        NotFound: there is none. Corrupt: what is there is not it, also after reading it again.
    """
    for attempt in range(_TRIES):
        data = backend.read(location)
        try:
            return decode(data, key, f"{backend.url}/{location}")
        except Corrupt:
            if attempt == _TRIES - 1 or backend.folder is not None:
                raise
    raise AssertionError("unreachable")


def absent(backend: Backend, manifest: Manifest, prefix: str) -> str | None:
    """Return what is wrong with the sizes of the files that a manifest names, or None."""
    for name, info in manifest.files.items():
        size = backend.size(f"{prefix}/{name}")
        if size != info.size:
            state = "is missing" if size is None else f"has {size} bytes, want {info.size}"
            return f"{backend.url}/{prefix}/{name} {state}"
    return None


def altered(backend: Backend, manifest: Manifest, prefix: str) -> str | None:
    """Return which stored file does not have the bytes that a manifest names, or None. Reads everything."""
    for name, info in manifest.files.items():
        found = "nothing"
        for _ in range(1 if backend.folder is not None else _TRIES):
            try:
                found = backend.hash(f"{prefix}/{name}")
            except NotFound:
                return f"{backend.url}/{prefix}/{name} is missing"
            if found == info.sha256:
                break
        else:
            return f"{backend.url}/{prefix}/{name} has SHA-256 {found}, want {info.sha256}"
    return None


def suspect_key(key: str, attempt: str) -> str:
    """Return the key of the mark that a reader sets on an attempt whose bytes it found altered."""
    return f"quarantine/{key}/{attempt}.suspect.txt"


def stranger(home: Path, manifest: Manifest) -> Path | None:
    """Return a file or link in an attempt's local folder that its manifest does not name, or None.

    Readers look for files by pattern: one that was put there later would be read as if it belonged to the result.
    """
    for parent, folders, names in os.walk(home):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*names, *links):
            key = Path(parent, name).relative_to(home).as_posix()
            if key not in manifest.files and not key.startswith(f"{BESIDE}/") and not _OWN.fullmatch(name):
                return Path(parent, name)
    return None


def place_manifest(backend: Backend, location: str, manifest: Manifest, fence: Fence | None) -> Manifest:
    """Finish an attempt: put its manifest create-only, read it back, and return the stored one.

    Raises:
        LeaseLost: another process has taken over.
        AlreadyExists: another manifest is there (whole or not).
        Corrupt: the manifest could not be read back.
    """
    if fence is not None:
        fence.check()
    data = encode(manifest)
    decode(data, manifest.key, location)  # what we would refuse to read, we do not write
    backend.create(location, data)
    return read_manifest(backend, location, manifest.key)


def quarantine(backend: Backend, location: str, why: str) -> None:
    """Set a manifest aside under `quarantine/`, so that its name is free again."""
    stem = location.removeprefix("artifacts/").removesuffix("/manifest.json").removesuffix(".json")
    try:
        data = backend.read(location)
    except NotFound:
        return
    backend.write(f"quarantine/{stem}/{fresh_name()}.json", data)
    backend.write(f"quarantine/{stem}/{fresh_name()}.txt", f"{why}\n".encode())
    backend.delete(location)


def remove_under(backend: Backend, prefix: str, keep: Callable[[str], bool] | None = None) -> int:
    """Remove the objects under a folder, except those whose key `keep` claims; return the bytes removed."""
    gone = 0
    for entry in list(backend.list(prefix)):
        if keep is None or not keep(entry.key):
            backend.delete(entry.key)
            gone += entry.size
    if backend.folder is not None and keep is None:
        remove_tree(backend.folder / prefix, backend.folder)
    return gone


def local_copy(backend: Backend, manifest: Manifest, prefix: str, cache: Path) -> Path:
    """Return a local folder with exactly the bytes that a manifest names; every file is hashed.

    Raises:
        Corrupt: a stored file is missing or altered (named). Refused: a file of an open format, or one that does not
        belong to the result.
    """
    for name in manifest.files:
        check_name(name)
    if backend.folder is not None:
        if problem := altered(backend, manifest, prefix):
            raise Corrupt(problem)
        home = backend.folder / prefix
    else:
        home = cache / prefix
        try:
            make_folder(cache, 0o700)
        except OSError as err:
            raise unwritable(err, cache) from err
        for name, info in manifest.files.items():
            _fetch(backend, f"{prefix}/{name}", info, home / name)
    for name in manifest.files:
        check_content(home / name, name)
    if (other := stranger(home, manifest)) is not None:
        raise Refused(f"{other}: not part of this result, its manifest does not name it; remove it and run again")
    return home


def _fetch(backend: Backend, key: str, info: FileInfo, path: Path) -> None:
    """Make the local file `path` hold the bytes of `info`: checked if it is there, else through a temporary file."""
    try:
        if path.is_file() and sha256_file(path) == info.sha256:
            return
        make_folder(path.parent)
        temp = path.parent / f".part-{secrets.token_hex(8)}"
        found = ""
        for _ in range(_TRIES):
            try:
                found = backend.download(key, temp)
                if found == info.sha256:
                    os.replace(temp, path)
                    return
            except NotFound:
                raise Corrupt(f"{backend.url}/{key} is missing") from None
            finally:
                temp.unlink(missing_ok=True)
    except OSError as err:
        raise unwritable(err, path) from err
    raise Corrupt(f"{backend.url}/{key} has SHA-256 {found}, want {info.sha256}")
