"""Names and bytes: artifact references, object keys, canonical JSON and digests."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import Refused

# An allowlist, because s3fs gives `?versionId=`, `*` and `..` inside a key a meaning of their own.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{16}")
_MAX_KEY = 700  # S3 allows 1024 bytes; the rest is for the bucket's prefix
_MAX_DEPTH = 60
BESIDE = "_beside"  # folder in an attempt for logs and times: kept, but outside the digests


@dataclass(frozen=True, order=True)
class Ref:
    """The name of an artifact: what kind, what people call it, and a digest of what made it."""

    kind: str
    name: str
    digest: str

    def __post_init__(self) -> None:
        for part in (self.kind, self.name, self.digest):
            if not isinstance(part, str):
                raise Refused(f"an artifact name is made of strings, found {part!r}")
        if not _DIGEST.fullmatch(self.digest):
            raise Refused(f"digest {_shown(self.digest)}: want 16 hex digits")
        check_segment(self.kind)
        check_segment(self.name)
        check_segment(f"{self.name}-{self.digest}")

    @property
    def key(self) -> str:
        """`kind/name-digest`, unique in a store."""
        return f"{self.kind}/{self.name}-{self.digest}"

    @classmethod
    def parse(cls, key: str) -> Ref:
        """Return the reference whose `.key` is `key`."""
        if not isinstance(key, str):
            raise Refused(f"artifact key {_shown(repr(key))}: want text")
        kind, slash, rest = key.partition("/")
        name, dash, digest_ = rest.rpartition("-")
        if not slash or not dash:
            raise Refused(f"artifact key {_shown(key)}: want kind/name-digest")
        return cls(kind, name, digest_)

    def __str__(self) -> str:
        return self.key


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def check_segment(segment: str) -> str:
    """Return `segment` if it may be one part of a key, else raise `Refused`."""
    if not _SEGMENT.fullmatch(segment):
        raise Refused(f"name {_shown(segment)}: want 1 to 128 of A-Z a-z 0-9 . _ = - beginning with a letter or digit")
    return segment


def check_key(key: str) -> str:
    """Return `key` if every part of it is safe as a path and as an object key, else raise `Refused`."""
    if not isinstance(key, str) or len(key) > _MAX_KEY:
        raise Refused(f"key {_shown(str(key))}: want a string of at most {_MAX_KEY} characters")
    for segment in key.split("/"):
        if segment != BESIDE:
            check_segment(segment)
    return key


def _check_json(value: Any, where: str, depth: int) -> None:
    # Any: the JSON types are recursive, and this function is what establishes them.
    if depth > _MAX_DEPTH:
        raise Refused(f"{where[:80]}: nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused(f"{where}: want text as key, found {key!r}")
            _check_json(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(f"{where}: {value} is not a finite number")
    elif value is not None and not isinstance(value, str | int):
        raise Refused(f"{where}: {type(value).__name__} cannot be stored as JSON")


def canonical_json(obj: Any) -> bytes:
    """Return the one JSON text of `obj`: sorted keys, exact floats, no NaN, tuples as lists, UTF-8.

    Raises:
        Refused (a ValueError): a value, key or string that JSON cannot hold exactly.
    """
    _check_json(obj, "$", 0)
    try:
        return json.dumps(obj, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise Refused("a string holds half of a surrogate pair and cannot be stored as UTF-8") from None


def digest(obj: Any) -> str:
    """Return 16 hex digits of the SHA-256 of `obj` as canonical JSON."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()[:16]


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def parse_json(data: bytes, limit: int = 64 * 2**20) -> Any:
    """Return the value of a JSON text read from outside, strictly.

    Raises:
        ValueError: not UTF-8, not JSON, NaN or infinity, a key twice, too deep, or over `limit` bytes.
    """
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes, want at most {limit}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_json(value, "$", 0)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def seal(body: Any) -> bytes:
    """Return JSON that carries `body` and the hash of it."""
    return canonical_json({"body": body, "self": hashlib.sha256(canonical_json(body)).hexdigest()})


def unseal(data: bytes) -> Any:
    """Return what was sealed. Raises ValueError if it is not whole."""
    found = parse_json(data)
    if not isinstance(found, dict) or found.keys() != {"body", "self"}:
        raise ValueError("want an object with body and self")
    if found["self"] != hashlib.sha256(canonical_json(found["body"])).hexdigest():
        raise ValueError("its content does not have the hash that it states")
    return found["body"]
