"""A store in a folder: whole files only, made durable before they become visible."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from storage.backend import Entry
from storage.errors import AlreadyExists, NotFound, StorageError, unwritable
from storage.names import sha256_file

_TEMP = ".part-"  # begins with a dot, so that it can never be a key


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Create `path` and its missing parents durably; `mode` is for the last one."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(mode)
    except FileExistsError:
        return
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that did not exist, and fsync it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(folder: Path, stop: Path) -> None:
    """Remove a folder with all in it, and then its empty parents below `stop`. Links are removed, not followed."""
    try:
        _remove(folder)
    except OSError as err:
        raise unwritable(err, folder) from err
    while folder not in (stop, stop.parent):
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # something is left in it, perhaps just written by another process
            return
        folder = folder.parent


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        for item in os.scandir(folder):
            if item.is_dir(follow_symlinks=False):
                remove_tree(Path(item.path), Path(item.path).parent)
            else:
                Path(item.path).unlink(missing_ok=True)


def _drop(temp: Path) -> None:
    """Remove a temporary file if it is there still."""
    try:
        temp.unlink(missing_ok=True)
    except OSError as err:
        raise unwritable(err, temp) from err


class FolderBackend:
    """Objects are files under `root`."""

    retries = 0
    conditional = True  # os.link is create-only on every local file system

    def __init__(self, root: Path) -> None:
        self.folder: Path | None = Path(os.path.realpath(root))
        self._root = self.folder
        self.url = f"file://{self._root}"

    def _path(self, key: str, *, make: bool = False) -> Path:
        path = self._root / key
        if make:
            try:
                try:
                    make_folder(self._root, 0o700)
                    make_folder(path.parent)
                except FileNotFoundError:  # an emptied folder was removed by another process while we went down
                    make_folder(path.parent)
            except OSError as err:
                raise unwritable(err, path.parent) from err
        if os.path.realpath(path.parent) != str(path.parent):
            raise StorageError(f"{path}: leads out of its folder through a symbolic link; a store follows no links")
        return path

    def hurry(self, seconds: float) -> None:
        """See `Backend`: a disk that fails is not asked again."""

    def read(self, key: str) -> bytes:
        """See `Backend`."""
        path = self._path(key)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{path}: no such object") from None
        except OSError as err:
            raise unwritable(err, path) from err

    def _place(self, key: str, data: bytes, *, create: bool) -> None:
        # Twice, because a folder emptied by another process may vanish between mkdir and open.
        for attempt in (1, 2):
            path = self._path(key, make=True)
            temp = path.parent / f"{_TEMP}{secrets.token_hex(8)}"
            try:
                write_durably(temp, data)
                if create:
                    os.link(temp, path)
                else:
                    os.replace(temp, path)
                sync_folder(path.parent)
                return
            except FileExistsError:
                raise AlreadyExists(f"{path}: exists already") from None
            except FileNotFoundError as err:
                if attempt == 2:
                    raise unwritable(err, path) from err
            except OSError as err:
                raise unwritable(err, path) from err
            finally:
                _drop(temp)

    def write(self, key: str, data: bytes) -> None:
        """See `Backend`."""
        self._place(key, data, create=False)

    def create(self, key: str, data: bytes) -> None:
        """See `Backend`."""
        try:
            self._place(key, data, create=True)
        except AlreadyExists:
            if self.read(key) != data:
                raise

    def size(self, key: str) -> int | None:
        """See `Backend`."""
        path = self._path(key)
        try:
            return path.stat(follow_symlinks=False).st_size if path.is_file() else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise unwritable(err, path) from err

    def delete(self, key: str) -> None:
        """See `Backend`."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as err:
            raise unwritable(err, path) from err

    def list(self, prefix: str, *, deep: bool = True) -> Iterator[Entry]:
        """See `Backend`."""
        folder = self._path(prefix)
        try:
            found = sorted(os.scandir(folder), key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as err:
            raise unwritable(err, folder) from err
        for item in found:
            if item.name.startswith(".") or item.is_symlink():
                continue
            if item.is_dir():
                if deep:
                    yield from self.list(f"{prefix}/{item.name}")
                continue
            try:
                facts = item.stat()
            except FileNotFoundError:  # removed while we looked
                continue
            yield Entry(f"{prefix}/{item.name}", facts.st_size, facts.st_mtime)

    def upload(self, path: Path, key: str) -> None:
        """See `Backend`."""
        target = self._path(key, make=True)
        if target == path:  # a draft of a folder store is written where it stays
            try:
                sync_file(path)
                sync_folder(path.parent)
            except OSError as err:
                raise unwritable(err, path) from err
            return
        temp = target.parent / f"{_TEMP}{secrets.token_hex(8)}"
        try:
            with open(path, "rb") as source, open(temp, "xb") as file:
                while chunk := source.read(2**20):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, target)
            sync_folder(target.parent)
        except OSError as err:
            raise unwritable(err, target) from err
        finally:
            _drop(temp)

    def download(self, key: str, path: Path) -> str:
        """See `Backend`."""
        try:
            with open(self._path(key), "rb") as source, open(path, "wb") as file:
                while chunk := source.read(2**20):
                    file.write(chunk)
            return sha256_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{self._path(key)}: no such object") from None
        except OSError as err:
            raise unwritable(err, path) from err

    def hash(self, key: str) -> str:
        """See `Backend`."""
        path = self._path(key)
        try:
            return sha256_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{path}: no such object") from None
        except OSError as err:
            raise unwritable(err, path) from err

    def now(self) -> float:
        """See `Backend`."""
        return time.time()

    def abandoned(self, age: float, *, remove: bool) -> int:
        """See `Backend`."""
        count, limit = 0, self.now() - age
        for parent, _, names in os.walk(self._root):
            for path in (Path(parent, name) for name in names if name.startswith(_TEMP)):
                with contextlib.suppress(FileNotFoundError):
                    if path.lstat().st_mtime < limit:
                        count += 1
                        if remove:
                            path.unlink()
        return count

    def close(self) -> None:
        """Nothing is held open."""
