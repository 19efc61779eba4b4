"""A finished or abandoned campaign as its record in the store knows it, whatever the code and the configs are today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from report.view import Node, Version, View
from storage import Manifest, NotFound, Ref, Store

MAKERS = ("pretrain", "adopt", "train", "online")  # stages that make a version


def view_of(store: Store, campaign: str) -> View:
    """Return the view of the campaign recorded as `name-digest`: the newest result under each label.

    Stages that were never done are not in a record: such a view has no gaps to show.

    Raises:
        NotFound: no such campaign, with those that there are; or one that has made nothing yet.
    """
    known = {f"{name}-{digest}": (name, digest) for name, digest in store.campaigns()}
    if campaign not in known:
        raise NotFound(f"{store.url}: no campaign {campaign}; it has {', '.join(known) or 'none'}")
    record = store.campaign(*known[campaign])
    newest = {label: refs[-1] for label, refs in record.notes().items()}
    if not newest:
        raise NotFound(f"{store.url}: campaign {campaign} has made nothing yet")
    labels = {ref: label for label, ref in newest.items()}
    nodes = tuple(_node(store, label, ref, labels) for label, ref in newest.items())
    versions = tuple(
        Version(node.label, node.ref, newest.get(f"{node.label}-evaluate"), newest.get(f"{node.label}-gate"))
        for node in nodes
        if node.stage in MAKERS
    )
    name, digest = known[campaign]
    return View(name, digest, record.body(), nodes, versions, newest.get("compare"), planned=False)


def fullest(store: Store, planned: View) -> View:
    """Return the planned view, or the recorded one of the same campaign where that has more results, with a note why."""
    known = _recorded(store, planned)
    try:
        recorded = view_of(store, known) if known else None
    except NotFound:  # it has made nothing yet
        recorded = None
    if recorded is None:
        return planned
    mine, theirs = _made(store, planned), _made(store, recorded)
    if recorded.digest != planned.digest:
        return replace(recorded, note="its local data is not here: the page shows what the campaign's record has")
    if len(theirs) <= len(mine):
        return planned
    older = [m for label, m in theirs.items() if (node := planned.node(label)) and node.ref.key != m.key]
    if not older:  # the plan ends before the campaign did
        return recorded
    newest = datetime.fromtimestamp(max(float(m.record.get("began", 0.0)) for m in older), UTC)
    note = (
        f"the code has changed since {newest:%Y-%m-%d %H:%M} UTC: the page shows the {len(theirs)} results in the "
        f"campaign's record; of today's code {len(mine)} of {len(planned.nodes)} stages are done"
    )
    return replace(recorded, note=note)


def _made(store: Store, view: View) -> dict[str, Manifest]:
    found = ((node.label, store.manifest(node.ref)) for node in view.nodes)
    return {label: manifest for label, manifest in found if manifest is not None}


def _recorded(store: Store, planned: View) -> str | None:
    """The campaign's name-digest in the store, also where its local files, and with them their digests, are not here."""
    known = [digest for name, digest in store.campaigns() if name == planned.name]
    if planned.digest in known:
        return f"{planned.name}-{planned.digest}"
    for digest in known:
        if _same({**planned.config, "runtime": None}, {**store.campaign(planned.name, digest).body(), "runtime": None}):
            return f"{planned.name}-{digest}"
    return None


def _same(here: Any, there: Any) -> bool:
    """Whether two configs are equal but for the digests of files that are not here."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        return here.keys() == there.keys() and all(
            (key == "sha256" and here[key] is None) or _same(here[key], there[key]) for key in here
        )
    if isinstance(here, list | tuple) and isinstance(there, list | tuple):
        return len(here) == len(there) and all(map(_same, here, there))
    return bool(here == there)


def _node(store: Store, label: str, ref: Ref, labels: Mapping[Ref, str]) -> Node:
    manifest = store.manifest(ref)
    identity = manifest.record.get("identity", {}) if manifest else {}
    given = identity.get("inputs", {})
    keys = [key for value in given.values() for key in ([value] if isinstance(value, str) else value)]
    inputs = tuple(dict.fromkeys(labels[found] for key in keys if (found := Ref.parse(key)) in labels))
    return Node(label, str(identity.get("work", ref.name)), ref, inputs)
