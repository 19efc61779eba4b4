"""A store in an S3 bucket through s3fs: no listing cache, own retries, own integrity checks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiobotocore.session
import fsspec.asyn
import s3fs

from storage.backend import Entry
from storage.connection import loader, own, settings
from storage.errors import AlreadyExists, NotFound, Refused, StorageError, Unwritable, unwritable
from storage.names import check_key
from storage.retry import Retry
from storage.transfer import PART, in_order, send_parts

# Any in this file: s3fs and botocore answer with untyped dicts.
_TRIES = 4
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# Seconds during which failures of one request are repeated.
_PATIENCE = {"leases": 60.0, "beats": 60.0, "data": 900.0, "small": 300.0}


class S3Backend:
    """Objects under `s3://bucket/prefix`. Usable after a fork: each process makes its own connection."""

    folder: Path | None = None

    def __init__(self, bucket: str, prefix: str) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise Refused(f"bucket {bucket[:80]!a}: want 3 to 63 of a-z 0-9 . - beginning and ending with a-z 0-9")
        if prefix:
            check_key(prefix)
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.patience = dict(_PATIENCE)
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._settings = settings()
        self._retry = Retry(self._source)
        self._fs: Any = None
        self._pid = 0
        self._conditional: bool | None = None
        self._bucket_seen = False

    def hurry(self, seconds: float) -> None:
        """See `Backend`."""
        self.patience = dict.fromkeys(_PATIENCE, seconds)

    def _connected(self) -> Any:
        if self._fs is None or self._pid != os.getpid():
            session = aiobotocore.session.AioSession()
            session.register_component("data_loader", loader())
            self._fs, self._pid = s3fs.S3FileSystem(session=session, **self._settings), os.getpid()
            self._fs.retries = 1
            own(self._fs)
        return self._fs

    def _source(self) -> str:
        """Return where botocore took the credentials from."""
        try:
            fs = self._connected()
            found = fsspec.asyn.sync(fs.loop, fs.session.get_credentials)
            return found.method if found is not None else "nowhere"
        except Exception:  # it only decorates another error's message
            return "an unknown source"

    def _call(self, method: str, key: str, patience: str, **arguments: Any) -> Any:
        """Call an S3 operation on an object until it succeeds or its failure is final."""

        def action() -> Any:
            fs = self._connected()
            return fs.call_s3(method, Bucket=self._bucket, **arguments)

        where = f"{self.url}/{key}" if key else self.url
        answer = self._retry.run(action, where, self.patience[patience])
        self._bucket_seen |= method != "delete_object"  # which succeeds where nothing is
        return answer

    def _patience(self, key: str) -> str:
        first = key.partition("/")[0]
        return first if first in self.patience else "small"

    @property
    def retries(self) -> int:
        """How many requests were repeated so far."""
        return self._retry.count

    @property
    def conditional(self) -> bool:
        """Whether the second creator of a key is refused; tried once, on two objects' worth of requests."""
        if self._conditional is None:
            key, first = f"probe/{secrets.token_hex(16)}", secrets.token_bytes(16)
            try:
                self._put_if_free(key, first)
                refused = not self._put_if_free(key, secrets.token_bytes(16))
                self._conditional = refused and self._holds(key, first)
            finally:
                self.delete(key)
        return self._conditional

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        # rclone checks Content-MD5 and no other sum; moto none; AWS all of them.
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        arguments = {"Key": self._prefix + key, "Body": data, "ContentMD5": md5, **condition}
        self._call("put_object", key, self._patience(key), **arguments)

    def _put_if_free(self, key: str, data: bytes) -> bool:
        """Try one conditional write; True if the key now holds `data`, also when the answer to it was lost."""
        try:
            self._put(key, data, IfNoneMatch="*")
            return True
        except AlreadyExists:
            return self._holds(key, data)

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether the key holds `data`; asked again if not, since an answer may arrive altered."""
        try:
            return any(self.read(key) == data for _ in range(_TRIES))
        except NotFound:
            return False

    def read(self, key: str) -> bytes:
        """See `Backend`."""
        path = f"{self._bucket}/{self._prefix}{key}"

        def action() -> bytes:
            # One stream skips s3fs's extra HEAD and keeps the whole object's checksum in force.
            data: bytes = self._connected().cat_file(path, max_concurrency=1)
            return data

        return self._retry.run(action, f"{self.url}/{key}", self.patience[self._patience(key)])

    def write(self, key: str, data: bytes) -> None:
        """See `Backend`."""
        self._put(key, data)

    def create(self, key: str, data: bytes) -> None:
        """See `Backend`."""
        exists = AlreadyExists(f"{self.url}/{key}: exists already")
        if not self.conditional and self.size(key) is not None:
            if self._holds(key, data):
                return
            raise exists
        if not self._put_if_free(key, data):
            raise exists
        for _ in range(_TRIES):
            if self._holds(key, data):
                return
            if not self.conditional:
                raise exists  # a rival wrote after our look
            self._put(key, data)  # it is ours, and was altered on its way
        raise StorageError(f"{self.url}/{key}: read back altered {_TRIES} times")

    def size(self, key: str) -> int | None:
        """See `Backend`."""
        try:
            answer = self._call("head_object", key, self._patience(key), Key=self._prefix + key)
        except NotFound:
            if not self._bucket_seen:  # HEAD cannot tell a missing bucket from a missing key
                self.now()
            return None
        if "ContentLength" not in answer:
            raise StorageError(f"{self.url}/{key}: the server does not say how large it is")
        return int(answer["ContentLength"])

    def now(self) -> float:
        """Return the server's time in seconds; also proves that the bucket is there."""
        try:
            # not head_bucket: it names no prefix, so a policy that allows this prefix alone forbids it
            answer = self._call("list_objects_v2", "", "small", Prefix=self._prefix, MaxKeys=1)
        except NotFound:
            raise Unwritable(f"s3://{self._bucket}: the bucket does not exist: create it") from None
        self._bucket_seen = True
        try:
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        except (KeyError, ValueError):
            raise StorageError(f"{self.url}: the server does not tell the time") from None

    def delete(self, key: str) -> None:
        """See `Backend`."""
        try:
            self._call("delete_object", key, self._patience(key), Key=self._prefix + key)
        except NotFound:
            return

    def list(self, prefix: str, *, deep: bool = True) -> Iterator[Entry]:
        """See `Backend`."""
        arguments: dict[str, Any] = {"Prefix": f"{self._prefix}{prefix}/"}
        if not deep:
            arguments["Delimiter"] = "/"
        while True:
            page = self._call("list_objects_v2", prefix, "small", **arguments)
            for item in page.get("Contents", []):
                try:
                    key = check_key(item["Key"].removeprefix(self._prefix))
                    entry = Entry(key, int(item["Size"]), item["LastModified"].timestamp())
                except (Refused, KeyError):  # a stray object, or an answer that arrived altered
                    continue
                if key.startswith(f"{prefix}/"):
                    yield entry
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def tagged(self) -> Iterator[tuple[str, int, str]]:
        """Yield (key, bytes, ETag) of every object under the prefix, whatever its name."""
        arguments: dict[str, Any] = {"Prefix": self._prefix}
        while True:
            page = self._call("list_objects_v2", "", "small", **arguments)
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self._prefix), int(item["Size"]), item["ETag"].strip('"')
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def tag(self, key: str) -> str:
        """Return an object's ETag. Raises `NotFound`."""
        answer = self._call("head_object", key, "small", Key=self._prefix + key)
        return str(answer["ETag"]).strip('"')

    def upload(self, path: Path, key: str) -> None:
        """See `Backend`."""
        try:
            if path.stat().st_size <= 2 * PART:
                self._put(key, path.read_bytes())
            else:
                send_parts(path, lambda method, **arguments: self._object(method, key, **arguments))
        except OSError as err:
            raise unwritable(err, path) from err

    def _object(self, method: str, key: str, **arguments: Any) -> Any:
        return self._call(method, key, "data", Key=self._prefix + key, **arguments)

    def _range(self, key: str, start: int, stop: int) -> bytes:
        path = f"{self._bucket}/{self._prefix}{key}"

        def action() -> bytes:
            data: bytes = self._connected().cat_file(path, start=start, end=stop)
            if len(data) != stop - start:
                raise EOFError(f"{len(data)} of {stop - start} bytes arrived")
            return data

        return self._retry.run(action, f"{self.url}/{key}", self.patience["data"])

    def _chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes in order. The caller hashes them: ranged reads carry no checksum."""
        size = self.size(key)
        if size is None:
            raise NotFound(f"{self.url}/{key}: no such object")
        if size <= PART:
            yield self.read(key)
            return
        yield from in_order(lambda start: self._range(key, start, min(start + PART, size)), range(0, size, PART))

    def download(self, key: str, path: Path) -> str:
        """See `Backend`."""
        sha = hashlib.sha256()
        try:
            with open(path, "w+b") as file:
                for chunk in self._chunks(key):
                    first = file.tell()
                    file.write(chunk)
                    file.seek(first)
                    while piece := file.read(2**20):  # what the file holds, while the next parts arrive
                        sha.update(piece)
            return sha.hexdigest()
        except OSError as err:
            raise unwritable(err, path) from err

    def hash(self, key: str) -> str:
        """See `Backend`."""
        sha = hashlib.sha256()
        for chunk in self._chunks(key):
            sha.update(chunk)
        return sha.hexdigest()

    def _uploads(self) -> Iterator[Any]:
        """Multipart uploads that have not ended, page by page. Any: JSON of botocore."""
        where: dict[str, str] = {}
        while True:
            page = self._call("list_multipart_uploads", "", "small", Prefix=self._prefix, **where)
            yield from page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return
            where = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abandoned(self, age: float, *, remove: bool) -> int:
        """Return how many multipart uploads under the prefix began more than `age` seconds ago; abort them."""
        count, limit = 0, self.now() - age
        try:
            uploads = list(self._uploads())
        except NotFound:  # rclone keeps no such list; its leftovers end with the server
            return 0
        for upload in uploads:
            if upload["Key"].startswith(self._prefix) and upload["Initiated"].timestamp() < limit:
                count += 1
                if remove:
                    key = upload["Key"].removeprefix(self._prefix)
                    with contextlib.suppress(NotFound):
                        self._object("abort_multipart_upload", key, UploadId=upload["UploadId"])
        return count

    def close(self) -> None:
        """See `Backend`."""
        if self._fs is not None and self._pid == os.getpid() and self._fs._s3 is not None:
            # s3fs's own way out waits 0.1 s and then leaves sockets open.
            fsspec.asyn.sync(self._fs.loop, self._fs._s3creator.__aexit__, None, None, None, timeout=5)
            self._fs._s3 = None
        self._fs = None
