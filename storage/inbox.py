"""Places where documents arrive, which are not ours: a folder, an S3 prefix, a dataset repository of the Hugging Face hub.

They are looked at by name, size and content tag, never by time: a clock that is wrong or a file that arrives late
under an old date changes nothing. Nothing is ever written there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from storage.errors import NotFound, Refused, StorageError, unwritable
from storage.names import sha256_file

LINK, ODD = "!link", "!name"  # tags of what is listed but cannot be read
_HUB = re.compile(r"datasets/[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


class Moved(StorageError):
    """A file vanished or changed between being listed and being read."""


@dataclass(frozen=True, order=True)
class Arrived:
    """One file: its name below the URL, bytes, and a tag of its content (SHA-256 or ETag), or LINK or ODD."""

    name: str
    size: int
    tag: str


def look(url: str) -> list[Arrived]:
    """Return the files that lie under `url` at any depth, sorted by name; names with a part that begins with . are left out.

    Args:
        url: a path or file:///..., s3://bucket/prefix, or hf://datasets/owner/name[@revision].

    Raises:
        StorageError: nothing is there, or it cannot be read; one line.
    """
    return sorted(found for found in _open(url).files() if not any(p.startswith(".") for p in found.name.split("/")))


def fetch(url: str, file: Arrived, path: Path) -> None:
    """Copy a file to `path` and make sure that it is the one that was listed.

    Raises:
        Moved: it is gone, or no longer what it was.
    """
    try:
        same = _open(url).copy(file, path)
    except NotFound:
        raise Moved(f"{url}/{file.name}: vanished between listing and reading; nothing is lost, run again") from None
    if not same:
        raise Moved(f"{url}/{file.name}: changed between listing and reading; nothing is lost, run again")


def _open(url: str) -> _Folder | _Bucket | _Hub:
    parts = urlsplit(url)
    if "::" in url or "@" in parts.netloc or parts.query or parts.fragment:
        raise Refused(f"inbox {parts.scheme}://...: no chain, user, query or fragment in a URL")
    if parts.scheme in ("", "file"):
        return _Folder(Path(unquote(parts.path) if parts.scheme else url).expanduser())
    if parts.scheme == "s3":
        return _Bucket(url, parts.netloc, parts.path.strip("/"))
    if parts.scheme == "hf":
        return _Hub(url, f"{parts.netloc}/{parts.path.strip('/')}")
    raise Refused(f"inbox scheme {parts.scheme}: want a folder, s3://bucket/prefix or hf://datasets/owner/name")


class _Folder:
    """A folder of this machine. Links are listed, not followed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self) -> Iterator[Arrived]:
        """All files there, in any order."""
        if not self.root.is_dir():
            raise StorageError(f"{self.root}: no such folder; create it, or correct the inbox in the config")
        for parent, _, names in os.walk(self.root):
            for path in (Path(parent, name) for name in names):
                name = path.relative_to(self.root).as_posix()
                shown = name.encode("utf-8", "backslashreplace").decode()
                try:
                    if path.is_symlink() or not path.is_file():
                        yield Arrived(shown, 0, LINK)
                    elif shown != name:
                        yield Arrived(shown, path.stat().st_size, ODD)
                    else:
                        yield Arrived(name, path.stat().st_size, sha256_file(path))
                except FileNotFoundError:  # removed while we looked: it was never there
                    continue
                except OSError as err:
                    raise unwritable(err, path) from err

    def copy(self, file: Arrived, path: Path) -> bool:
        """Copy a file to `path`; returns whether it is still the one that was listed."""
        try:
            shutil.copyfile(self.root / file.name, path, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound(f"{self.root / file.name}: no such file") from None
        except OSError as err:
            raise unwritable(err, self.root / file.name) from err
        return sha256_file(path) == file.tag


class _Bucket:
    """An S3 prefix. An ETag stands for the content: another ETag means that the object is read again."""

    def __init__(self, url: str, bucket: str, prefix: str) -> None:
        from storage.s3 import S3Backend  # 0.4 s of imports that a folder does not need

        self.url, self.backend = url, S3Backend(bucket, prefix)

    def files(self) -> Iterator[Arrived]:
        """All files there, in any order."""
        self.backend.now()  # a bucket that is not there, or credentials that are wrong, are told apart from no documents
        for name, size, tag in self.backend.tagged():
            if not name.endswith("/"):  # what a browser makes to show an empty folder
                yield Arrived(name, size, ODD if "?versionId=" in name or any(ord(c) < 32 for c in name) else tag)
        self.backend.close()

    def copy(self, file: Arrived, path: Path) -> bool:
        """Copy a file to `path`; returns whether it is still the one that was listed."""
        try:
            self.backend.download(file.name, path)
            return self.backend.tag(file.name) == file.tag and path.stat().st_size == file.size
        finally:
            self.backend.close()


class _Hub:
    """The files of a dataset repository, by the hub's own content ids."""

    def __init__(self, url: str, path: str) -> None:
        if not _HUB.fullmatch(path):
            raise Refused(f"inbox {url}: want hf://datasets/owner/name or hf://datasets/owner/name@revision")
        from huggingface_hub import HfFileSystem  # a second of imports that others do not need

        self.url, self.path, self.hub = url, path, HfFileSystem(skip_instance_cache=True, use_listings_cache=False)

    def files(self) -> Iterator[Arrived]:
        """All files there, in any order."""
        for facts in self._facts().values():
            if facts["type"] == "file":
                name = facts["name"].removeprefix(self._root(facts["name"])).lstrip("/")
                yield Arrived(name, int(facts["size"]), _tag(facts))

    def copy(self, file: Arrived, path: Path) -> bool:
        """Copy a file to `path`; returns whether it is still the one that was listed."""
        where = f"{self.path}/{file.name}"
        try:
            self.hub.get_file(where, str(path))
            return _tag(self.hub.info(where)) == file.tag and path.stat().st_size == file.size
        except FileNotFoundError:
            raise NotFound(f"{self.url}/{file.name}: no such file") from None
        except OSError as err:
            raise StorageError(f"{self.url}/{file.name}: {_said(err)}; check the network and run again") from err

    def _facts(self) -> dict[str, Any]:  # Any: what an untyped library answers
        try:
            found = self.hub.find(self.path, detail=True, refresh=True)
        except (OSError, ValueError) as err:  # its HTTP errors are OSErrors; no such revision is a ValueError
            raise StorageError(f"{self.url}: {_said(err)}; check the name, the revision and the network") from err
        assert isinstance(found, dict), "detail=True gives a dict"
        return found

    def _root(self, name: str) -> str:
        """The part of a listed name that is the repository's, with its revision if the listing repeats it."""
        plain = self.path.split("@")[0]
        return self.path if name.startswith(self.path) else plain


def _tag(facts: dict[str, Any]) -> str:
    """The hub's SHA-256 of a large file, else its git blob id."""
    lfs = facts.get("lfs")
    return str(lfs["sha256"] if lfs else facts["blob_id"])


def _said(err: BaseException) -> str:
    return " ".join(str(err).split("For more information")[0].split())[:300] or type(err).__name__


def tag_of(text: str) -> str:
    """Return a tag for content that is no file."""
    return hashlib.sha256(text.encode()).hexdigest()
