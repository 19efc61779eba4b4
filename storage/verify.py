"""Verification: hash every file of a campaign again, and sum it up in one root hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.attempt import altered, read_manifest
from storage.backend import Backend
from storage.errors import Corrupt, NotFound
from storage.manifest import Manifest
from storage.names import BESIDE, Ref, canonical_json
from storage.reach import location, reachable, refs_in
from storage.store import Store


@dataclass(frozen=True)
class Verification:
    """What hashing a campaign again has shown.

    `root`: SHA-256 of the canonical {artifact: root of its result files}; two runs of one campaign with
    equal results have equal roots. `problems`: one line for each damaged or missing artifact.
    """

    root: str
    artifacts: int
    files: int
    bytes: int
    problems: tuple[str, ...]


def verify(store: Store, name: str, digest: str, on_artifact: Callable[[str], None] | None = None) -> Verification:
    """Hash every file of every artifact of a campaign, and of what they were made of.

    `on_artifact` gets the key of each artifact before it is read.

    Raises:
        NotFound: the campaign names no artifact, so that nothing was verified. Corrupt: its record is damaged.
    """
    noted = {ref for refs in store.campaign(name, digest).notes().values() for ref in refs}
    if not noted:
        raise NotFound(f"{store.url}: campaign {name}-{digest} names no artifact; nothing to verify")
    found: dict[str, str] = {}
    problems: list[str] = []
    required, gone = set(noted), dict[Ref, str]()
    files = size = 0
    for ref in sorted(reachable(store, noted)):
        if on_artifact is not None:
            on_artifact(ref.key)
        try:
            manifest = read_manifest(store.backend, location(ref), ref.key)
        except NotFound as err:
            gone[ref] = str(err)
            continue
        except Corrupt as err:
            problems.append(str(err))
            continue
        prefix = f"artifacts/{ref.key}/{manifest.attempt}"
        if problem := altered(store.backend, manifest, prefix) or _stranger(store.backend, manifest, prefix):
            problems.append(f"{ref.key}: {problem}")
        required.update(refs_in(_inputs(manifest)))
        found[ref.key] = manifest.root
        files += len(manifest.files)
        size += manifest.bytes
    problems += [gone[ref] for ref in sorted(required & gone.keys())]  # other names may only look like artifacts
    root = hashlib.sha256(canonical_json(found)).hexdigest()
    return Verification(root, len(found), files, size, tuple(problems))


def _inputs(manifest: Manifest) -> Any:
    """What a result says that it was made of. Any: JSON."""
    identity = manifest.record.get("identity")
    return identity.get("inputs") if isinstance(identity, dict) else None


def _stranger(backend: Backend, manifest: Manifest, prefix: str) -> str | None:
    """Return which object lies in an attempt without being part of it, or None."""
    for entry in backend.list(prefix):
        name = entry.key.removeprefix(f"{prefix}/")
        if name not in manifest.files and not name.startswith(f"{BESIDE}/"):
            return f"{backend.url}/{entry.key} is not part of this result, its manifest does not name it"
    return None
