"""Which S3 failures are worth repeating, how often, and what to tell the user about the others."""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from storage.errors import AlreadyExists, NotFound, StorageError, Unwritable

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_TOLD = 10.0  # seconds without success after which it is said, once a request

_CAP = 20.0  # seconds, longest pause
_FIRST = 0.1  # seconds, scale of the first pause
_STATUS = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_CODES = frozenset(
    """SlowDown RequestLimitExceeded Throttling ThrottlingException TooManyRequests InternalError ServiceUnavailable
    RequestTimeout OperationAborted ConditionalRequestConflict XAmzContentSHA256Mismatch BadDigest IncompleteBody
    InvalidDigest""".split()  # noqa: SIM905
)
# A damaged answer shows itself as any of these; none of them comes from our own code.
_PARSING = (IncompleteReadError, FlexibleChecksumError, ResponseParserError)
_WIRE = (
    *_PARSING,
    HTTPClientError,
    BotoConnectionError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
    EOFError,
)
FAILURES = (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, EOFError)
# A damaged answer also makes botocore's parser raise these bare; from anywhere else they are a bug of ours.
_BARE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)

_DENIED = {
    "AccessDenied": "access denied: the policy must allow Get, Put, List, Delete and AbortMultipartUpload here",
    "403": "access denied (a key that does not exist reads the same without s3:ListBucket)",
    "InvalidAccessKeyId": "the access key is not known to this server",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "ExpiredToken": "the session token has expired: renew it",
    "InvalidToken": "the session token is not valid: renew it",
    "TokenRefreshRequired": "the session token must be renewed",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's: set it",
    "NoSuchBucket": "the bucket does not exist: create it, or choose another store",
    "InvalidBucketName": "not a valid bucket name",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "301": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "QuotaExceeded": "the store is full",
    "InsufficientStorage": "the store is full",
}


def _cause(err: BaseException) -> tuple[str, int]:
    """Return the S3 error code and HTTP status behind an exception, ('', 0) if it carries none."""
    seen: BaseException | None = err
    while seen is not None:
        if isinstance(seen, ClientError):
            status = seen.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(seen.response.get("Error", {}).get("Code", "")), int(status)
        seen = seen.__cause__
    return "", 0


def verdict(err: Exception, where: str, source: Callable[[], str]) -> StorageError | None:
    """Return the error that ends the attempt, None if the request is worth repeating.

    Args:
        where: the object's URL.
        source: tells where the credentials came from; asked only if they are the matter.
    """
    code, status = _cause(err)
    if code == "PreconditionFailed" or status == 412 or isinstance(err, FileExistsError):
        return AlreadyExists(f"{where}: exists already")
    if code in _CODES or status in _STATUS:
        return None
    if code in _DENIED and code != "403":
        return Unwritable(f"{where}: {_DENIED[code]} ({code}; credentials from {source()})")
    if status == 404 or code in ("404", "NoSuchKey", "NoSuchUpload"):
        return NotFound(f"{where}: no such object")
    if status in (401, 403) or isinstance(err, PermissionError):
        return Unwritable(f"{where}: {_DENIED['403']} ({code or 'Forbidden'}; credentials from {source()})")
    if isinstance(err, NoCredentialsError | PartialCredentialsError):
        return Unwritable(
            f"{where}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
        )
    if code or status:
        return Unwritable(f"{where}: the server answered {status} {code}: {_line(err)}")
    if isinstance(err, (*_WIRE, *_BARE)):
        return None
    return Unwritable(f"{where}: {_line(err)}")


def _from_parser(err: BaseException) -> bool:
    """Whether an exception arose while botocore was taking an answer apart."""
    frames = traceback.walk_tb(err.__traceback__)
    return any(frame.f_globals.get("__name__") == "botocore.parsers" for frame, _ in frames)


def _line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__


class Retry:
    """Repeats requests with full jitter from a generator of its own, so that no other draw is disturbed."""

    def __init__(self, source: Callable[[], str]) -> None:
        self.count = 0
        self._source = source
        self._random = random.Random()  # seeded by the system; botocore's would draw from the global generator

    def run(self, action: Callable[[], T], where: str, deadline: float) -> T:
        """Return what `action` returns, repeating transient failures for `deadline` seconds."""
        start, tries, told = time.monotonic(), 0, False
        while True:
            tries += 1
            try:
                return action()
            except (*FAILURES, *_BARE) as err:
                if isinstance(err, _BARE) and not _from_parser(err):
                    raise
                if (final := verdict(err, where, self._source)) is not None:
                    raise final from err
                last = err
            pause = self._random.uniform(0, min(_CAP, _FIRST * 2**tries))
            if time.monotonic() - start + pause > deadline:
                raise Unwritable(
                    f"{where}: no success in {tries} tries over {time.monotonic() - start:.0f} s, the last: "
                    f"{type(last).__name__}: {_line(last)}; check the network and the server, then run again"
                ) from last
            if not told and time.monotonic() - start > _TOLD:
                told = True
                _LOG.warning(
                    "%s does not answer (%s: %s); asked again for %.0f s",
                    where,
                    type(last).__name__,
                    _line(last),
                    deadline,
                )
            self.count += 1
            time.sleep(pause)
