"""What can be reached: from campaigns and aliases to every artifact that went into theirs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Any

from storage.attempt import read_manifest
from storage.campaign import CampaignRecord
from storage.errors import Corrupt, NotFound, Refused, StorageError
from storage.names import Ref
from storage.store import Store

_LOOKS = 3
_CAMPAIGN = re.compile(r"campaigns/([^/]+)-([0-9a-f]{16})(?:\.json|/.*)", re.ASCII)


def roots(store: Store) -> set[Ref]:
    """Return what campaigns and aliases name.

    Raises:
        Corrupt: a record cannot be read, so that nobody can say what it reaches.
        StorageError: the listing changed between looks, so that a campaign may have been missed.
    """
    seen: set[tuple[str, str]] = set()
    for look in range(_LOOKS):
        matches = (_CAMPAIGN.fullmatch(entry.key) for entry in store.backend.list("campaigns"))
        names = {(match[1], match[2]) for match in matches if match}
        if look and names != seen:
            raise StorageError(f"{store.url}: the list of campaigns changed while it was read; run gc again")
        seen = names
    found = set(store.aliases().values())
    for name, digest in seen:
        for refs in CampaignRecord(store.backend, name, digest).notes().values():
            found.update(refs)
    return found


def refs_in(value: Any) -> Iterable[Ref]:
    """Yield every artifact name in a record. Any: JSON. One that only looks like a name does no harm."""
    if isinstance(value, str):
        with contextlib.suppress(Refused):
            yield Ref.parse(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from refs_in(key)
            yield from refs_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from refs_in(item)


def reachable(store: Store, start: Iterable[Ref]) -> set[Ref]:
    """Return `start` and every artifact that went into one of them, as far as their manifests tell."""
    found: set[Ref] = set()
    waiting = list(start)
    while waiting:
        ref = waiting.pop()
        if ref in found:
            continue
        found.add(ref)
        try:
            waiting.extend(refs_in(read_manifest(store.backend, location(ref), ref.key).record))
        except NotFound:
            continue
        except Corrupt as err:
            store.warn(f"{err}; what it was made of is kept only if something else names it")
    return found


def location(ref: Ref) -> str:
    """Return the key of an artifact's manifest."""
    return f"artifacts/{ref.key}/manifest.json"
