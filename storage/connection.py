"""How to reach S3: s3fs's arguments, from the environment alone."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import selectors
import weakref
from typing import Any
from urllib.parse import urlsplit

import botocore.loaders

from storage.errors import Refused
from storage.transfer import PART, STREAMS

# Any in this file: the arguments of an untyped library.
READ_TIMEOUT = 60.0  # seconds without a byte after which a request is tried again
_SSE_KMS = {"ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext", "BucketKeyEnabled"}
_SSE = frozenset({*_SSE_KMS, "SSECustomerAlgorithm", "SSECustomerKey"})


_ours: list[weakref.ref[Any]] = []  # file systems of this process
_inherited: list[Any] = []  # those of the process that it was forked from, kept so that nothing finalizes them


def own(fs: Any) -> None:
    """Remember an s3fs file system, so that a forked child keeps its hands off its connections."""
    _ours[:] = [one for one in _ours if one() is not None] + [weakref.ref(fs)]


def _disown() -> None:
    """In a forked child, cut the inherited event loops off from the parent's.

    An epoll set is shared across a fork. If the child closed an inherited connection, it would take the socket
    out of the parent's set, and the parent would wait for its next answer until the timeout (measured: 60 s).
    """
    _inherited.extend(fs for one in _ours if (fs := one()) is not None)
    _ours.clear()
    for fs in _inherited:
        fs._loop._selector = selectors.SelectSelector()


os.register_at_fork(after_in_child=_disown)


@functools.cache
def loader() -> Any:
    """Return botocore's reader of its service models; sharing it makes a second client 50 ms cheaper."""
    return botocore.loaders.create_loader(None)


def settings() -> dict[str, Any]:
    """Return s3fs's arguments. Credentials are never among them: botocore's chain finds them."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config: dict[str, Any] = {
        # One attempt, since the loop in retry.py repeats: botocore's backoff draws from the global random generator.
        "retries": {"mode": "legacy", "total_max_attempts": 1},
        "connect_timeout": 5,
        "read_timeout": READ_TIMEOUT,
    }
    if endpoint is not None and not _check_endpoint(endpoint).endswith(".amazonaws.com"):
        region = region or "us-east-1"
        config["s3"] = {"addressing_style": "path"}
        config["response_checksum_validation"] = "when_required"  # rclone sends the whole object's sum with a range
    return {
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": region} if region else {},
        "config_kwargs": config,
        "s3_additional_kwargs": _encryption(),
        "use_listings_cache": False,  # it never expires and also answers exists, info and open
        "skip_instance_cache": True,
        "default_block_size": PART,
        "max_concurrency": STREAMS,
    }


def _check_endpoint(endpoint: str) -> str:
    """Return the host of an endpoint that may be talked to."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise Refused("the S3 endpoint (AWS_ENDPOINT_URL_S3): want http(s)://host:port without user or query")
    if _is_link_local(parts.hostname):
        raise Refused("the S3 endpoint (AWS_ENDPOINT_URL_S3): link-local addresses are refused")
    return parts.hostname


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:  # a name
        return False


def _encryption() -> dict[str, Any]:
    text = os.environ.get("ROUNDHOUSE_S3_SSE", "")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() <= _SSE:
        raise Refused(f"ROUNDHOUSE_S3_SSE: want a JSON object with some of {', '.join(sorted(_SSE))}")
    return found
