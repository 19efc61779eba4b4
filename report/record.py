"""A finished or abandoned campaign as its record in the store knows it, whatever the code and the configs are today."""

from __future__ import annotations

from collections.abc import Mapping

from report.view import Node, Version, View
from storage import NotFound, Ref, Store

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


def _node(store: Store, label: str, ref: Ref, labels: Mapping[Ref, str]) -> Node:
    manifest = store.manifest(ref)
    identity = manifest.record.get("identity", {}) if manifest else {}
    given = identity.get("inputs", {})
    keys = [key for value in given.values() for key in ([value] if isinstance(value, str) else value)]
    inputs = tuple(dict.fromkeys(labels[found] for key in keys if (found := Ref.parse(key)) in labels))
    return Node(label, str(identity.get("work", ref.name)), ref, inputs)
