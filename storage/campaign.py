"""Campaign records: the roots from which everything a campaign made can be found.

`campaigns/<name>-<digest>.json` is the body, created once; `campaigns/<name>-<digest>/<seq>-<hash>.json` are
notes, each naming one artifact and repeating the notes before it, so that an incomplete listing loses none
but perhaps the newest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from storage.backend import Backend
from storage.errors import AlreadyExists, Corrupt, NotFound, Refused
from storage.names import Ref, canonical_json, check_key, check_segment, digest, parse_json, seal, unseal
from storage.redact import secret_in

T = TypeVar("T")

_NOTE = re.compile(r"(\d{6})-([0-9a-f]{16})\.json", re.ASCII)
_BODY = re.compile(r"campaigns/(.+)-([0-9a-f]{16})\.json", re.ASCII)
_TRIES = 4


class CampaignRecord:
    """The record of one campaign."""

    def __init__(self, backend: Backend, name: str, digest: str) -> None:
        self.ref = Ref("campaigns", name, digest)
        self._backend = backend
        self._home = self.ref.key
        self._known: dict[str, tuple[str, str]] = {}  # note -> label, artifact key; notes are never removed

    def create(self, body: dict[str, Any]) -> None:
        """Write the record's body; an equal one that is there already is fine, a damaged one is repaired.

        Raises:
            AlreadyExists: the record exists with another body. Refused: it holds the value of a secret variable.
        """
        if name := secret_in(canonical_json(body).decode()):
            raise Refused(
                f"campaign {self.ref.name}: its config holds the value of {name}, and records are kept in the open; "
                "take it out, the variable is enough"
            )
        where = f"{self._home}.json"
        try:
            self._backend.create(where, seal(body))
        except AlreadyExists:
            with contextlib.suppress(Corrupt):
                _read(self._backend, where, unseal)
                raise AlreadyExists(
                    f"{self._backend.url}/{where}: this campaign was recorded with another body; "
                    "give the campaign another name"
                ) from None
            self._backend.write(where, seal(body))

    def body(self) -> dict[str, Any]:
        """Return the record's body. Raises `NotFound` or `Corrupt`."""
        body = _read(self._backend, f"{self._home}.json", unseal)
        if not isinstance(body, dict):
            raise Corrupt(f"{self._backend.url}/{self._home}.json: want an object")
        return body

    def note(self, label: str, ref: Ref) -> None:
        """Record that the campaign uses `ref` as `label`; saying it again changes nothing, or repairs the note."""
        check_segment(label)
        said = (label, ref.key)
        if said in self._known.values():
            return
        damaged = self._read_notes()
        if said in self._known.values():
            return
        mark = f"-{digest([label, ref.key])}.json"
        number = max((int(name[:6]) for name in (*self._known, *damaged)), default=0) + 1
        name = next((name for name in damaged if name.endswith(mark)), f"{number:06d}{mark}")
        seen = [[known, *pair] for known, pair in sorted(self._known.items())]
        data = canonical_json({"label": label, "ref": ref.key, "seen": seen})
        if name in damaged:
            self._backend.write(f"{self._home}/{name}", data)
        else:
            self._backend.create(f"{self._home}/{name}", data)
        self._known[name] = said

    def notes(self) -> dict[str, list[Ref]]:
        """Return what was noted, oldest first under each label. Raises `Corrupt` if a note cannot be told."""
        for problem in self._read_notes().values():
            raise problem
        found: dict[str, list[Ref]] = {}
        for _, (label, key) in sorted(self._known.items()):
            refs = found.setdefault(label, [])
            if (ref := Ref.parse(key)) not in refs:
                refs.append(ref)
        return found

    def _read_notes(self) -> dict[str, Corrupt]:
        """Learn the notes that are new; return those that are damaged and that no later one repeats."""
        damaged = {}
        listed = (entry.key.rpartition("/")[2] for entry in self._backend.list(self._home, deep=False))
        for name in sorted((name for name in listed if _NOTE.fullmatch(name)), reverse=True):
            if name in self._known:
                continue
            try:
                self._known |= _read(self._backend, f"{self._home}/{name}", partial(_entries, name))
            except NotFound:
                continue
            except Corrupt as err:
                damaged[name] = err
        return {name: err for name, err in damaged.items() if name not in self._known}

    def put_state(self, name: str, data: bytes) -> None:
        """Keep a small mutable hint of this campaign, such as its last run's id. Nothing may depend on it."""
        self._backend.write(f"state/{self._home}/{check_segment(name)}", data)

    def get_state(self, name: str) -> bytes | None:
        """Return a hint, None if it was never put."""
        try:
            return self._backend.read(f"state/{self._home}/{check_segment(name)}")
        except NotFound:
            return None


def _entries(name: str, data: bytes) -> dict[str, tuple[str, str]]:
    """Return the notes that one note tells of, itself and those before it; each name holds the hash of its content."""
    body, entries = parse_json(data), {}
    for known, label, key in [[name, body["label"], body["ref"]], *body["seen"]]:
        check_segment(label)
        Ref.parse(key)
        match = _NOTE.fullmatch(known)
        if not match or match[2] != digest([label, key]):
            raise ValueError(f"it does not have the hash in its name, {known}")
        entries[known] = (label, key)
    return entries


def _read(backend: Backend, key: str, decode: Callable[[bytes], T]) -> T:
    """Return what `decode` makes of an object, read again if it arrived damaged."""
    check_key(key)
    for _ in range(_TRIES):
        try:
            return decode(backend.read(key))
        except (ValueError, TypeError, KeyError) as err:
            problem = str(err)[:200]
    raise Corrupt(f"{backend.url}/{key}: damaged or not ours: {problem}")


def campaign_names(backend: Backend) -> list[tuple[str, str]]:
    """Return (name, digest) of the campaigns that a listing shows, sorted."""
    found = (_BODY.fullmatch(entry.key) for entry in backend.list("campaigns", deep=False))
    return sorted((match[1], match[2]) for match in found if match)


def write_alias(backend: Backend, name: str, ref: Ref) -> None:
    """Give an artifact a name of its own."""
    backend.write(f"aliases/{check_segment(name)}.json", seal(ref.key))


def read_aliases(backend: Backend) -> dict[str, Ref]:
    """Return the artifacts that were given a name of their own. Raises `Corrupt`."""
    found = {}
    for entry in backend.list("aliases", deep=False):
        with contextlib.suppress(NotFound):
            name = entry.key.removeprefix("aliases/").removesuffix(".json")
            found[name] = _read(backend, entry.key, lambda data: Ref.parse(unseal(data)))
    return found
