"""Large objects in parts: each part is repeated on its own, and a few are in memory at a time."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import NotFound, StorageError

T = TypeVar("T")

PART = 16 * 2**20  # bytes of one request
STREAMS = 4  # requests at a time, so at most four parts in memory
_MOST_PARTS = 10_000  # of one S3 upload


def in_order(work: Callable[[int], T], items: Iterable[int], streams: int = STREAMS) -> Iterator[T]:
    """Yield `work(item)` in the order of `items`, with up to `streams` of them under way."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(streams) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == streams:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def send_parts(path: Path, call: Callable[..., Any]) -> None:
    """Upload a file in parts; `call(method, **arguments)` is an S3 operation on the object, with retries.

    Returns also when the answer to the last request was lost and the upload is gone: the caller reads the
    object back and knows better than the server's answer. Any: botocore's untyped answers.
    """
    upload: dict[str, Any] = {"UploadId": call("create_multipart_upload")["UploadId"]}
    try:
        size = path.stat().st_size
        length = max(PART, -(-size // _MOST_PARTS))
        with open(path, "rb") as file:

            def send(start: int) -> str:
                body = os.pread(file.fileno(), length, start)
                tag: str = call("upload_part", PartNumber=start // length + 1, Body=body, **upload)["ETag"]
                return tag

            streams = max(1, STREAMS * PART // length)  # a file of more than 160 GB has larger parts, fewer at a time
            tags = list(in_order(send, range(0, size, length), streams))
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        with contextlib.suppress(NotFound):
            call("complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload)
    except BaseException:
        with contextlib.suppress(StorageError):  # what is left over is aborted by `gc`
            call("abort_multipart_upload", **upload)
        raise
