"""The manifest: the file whose presence means that an attempt is finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.errors import Corrupt, Refused
from storage.names import Ref, canonical_json, check_key, check_segment, parse_json

_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset(("v", "key", "attempt", "files", "beside", "record", "self"))


@dataclass(frozen=True)
class FileInfo:
    """SHA-256 (64 hex digits) and size in bytes of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What an attempt holds: `key` is the name it is bound to, `attempt` the folder of its files.

    `record` is the writer's own JSON (recipe, inputs, costs); `beside` names files kept outside the digests.
    """

    key: str
    attempt: str
    files: dict[str, FileInfo]
    record: dict[str, Any] = field(default_factory=dict)  # Any: JSON chosen by the writer
    beside: tuple[str, ...] = ()

    @property
    def ref(self) -> Ref:
        """The artifact's name."""
        return Ref.parse(self.key)

    @property
    def root(self) -> str:
        """One hash over all result files: the SHA-256 of the canonical {name: sha256}."""
        return hashlib.sha256(canonical_json({name: info.sha256 for name, info in self.files.items()})).hexdigest()

    @property
    def bytes(self) -> int:
        """Bytes of all result files together."""
        return sum(info.size for info in self.files.values())


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON that carries the hash of itself."""
    body: dict[str, Any] = {
        "v": _VERSION,
        "key": manifest.key,
        "attempt": manifest.attempt,
        "files": {name: {"sha256": info.sha256, "size": info.size} for name, info in manifest.files.items()},
        "beside": list(manifest.beside),
        "record": manifest.record,
    }
    body["self"] = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps(body, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1).encode()


def decode(data: bytes, key: str, where: str) -> Manifest:
    """Return the manifest in `data` if it is whole and belongs to `key`.

    Raises:
        Corrupt: `where` does not hold a manifest of `key`; says why.
    """
    try:
        return _decode(data, key)
    except (ValueError, Refused) as err:
        raise Corrupt(f"{where}: not a valid manifest of {key}: {str(err)[:200]}") from None


def _decode(data: bytes, key: str) -> Manifest:
    body = parse_json(data)
    if not isinstance(body, dict) or body.keys() != _FIELDS:
        raise ValueError(f"want the fields {', '.join(sorted(_FIELDS))}")
    claimed = body.pop("self")
    if claimed != hashlib.sha256(canonical_json(body)).hexdigest():
        raise ValueError("its content does not have the hash that it states")
    if type(body["v"]) is not int or body["v"] != _VERSION:
        raise ValueError(f"version {body['v']!r}, want {_VERSION}")
    if body["key"] != key:
        raise ValueError(f"it belongs to {body['key']!r}")
    attempt, beside, record = body["attempt"], body["beside"], body["record"]
    if not isinstance(attempt, str) or not isinstance(record, dict):
        raise ValueError("attempt must be text and record an object")
    if not isinstance(beside, list) or not all(isinstance(name, str) for name in beside):
        raise ValueError("beside must be a list of names")
    for name in beside:
        check_key(name)
    return Manifest(key, check_segment(attempt), _files(body["files"]), record, tuple(beside))


def _files(table: object) -> dict[str, FileInfo]:
    if not isinstance(table, Mapping):
        raise ValueError("files must be an object")
    files = {}
    for name, info in table.items():
        check_key(name)
        if not isinstance(info, dict) or info.keys() != {"sha256", "size"}:
            raise ValueError(f"{name}: want sha256 and size")
        sha, size = info["sha256"], info["size"]
        if not isinstance(sha, str) or not _SHA256.fullmatch(sha) or type(size) is not int or size < 0:
            raise ValueError(f"{name}: want a SHA-256 and a size in bytes")
        files[name] = FileInfo(sha, size)
    return files
