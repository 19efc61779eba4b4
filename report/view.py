"""What a report is about: one campaign as plain data, put together by whoever knows the order of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage import Ref


@dataclass(frozen=True)
class Node:
    """One stage: what people call it, the work it does, the name of its result (made or not), whose results it reads."""

    label: str
    stage: str
    ref: Ref
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Version:
    """One model of the campaign and the stages that evaluated and judged it, if they are planned."""

    label: str
    model: Ref
    evaluate: Ref | None = None
    gate: Ref | None = None


@dataclass(frozen=True)
class View:
    """A campaign: its nodes in the order of the work, its versions oldest first ("base" before "v0").

    planned: the nodes are all that the campaign will have, made or not; else they are what has been made.
    note: what a reader must know of where this comes from.
    """

    name: str
    digest: str
    config: Mapping[str, Any]  # Any: the JSON of a campaign's YAML
    nodes: tuple[Node, ...]
    versions: tuple[Version, ...] = ()
    compare: Ref | None = None
    planned: bool = True
    note: str = ""
    _by_label: Mapping[str, Node] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_label", {node.label: node for node in self.nodes})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> View:
        """Return the view that `tasks.outcome.view` describes.

        Raises:
            ValueError: a part is missing or has another shape; says which.
        """
        try:
            nodes = tuple(
                Node(node["label"], node["stage"], Ref.parse(node["key"]), tuple(node["inputs"]))
                for node in data["nodes"]
            )
            versions = tuple(
                Version(label, Ref.parse(one["model"]), _ref(one["evaluate"]), _ref(one.get("gate")))
                for label, one in data["versions"].items()
            )
            return cls(data["name"], data["digest"], data["config"], nodes, versions, _ref(data["compare"]))
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"not a view of a campaign: {type(err).__name__} {err}; see docs/report.md") from None

    def node(self, label: str) -> Node | None:
        """The stage called `label`."""
        return self._by_label.get(label)

    def node_of(self, ref: Ref) -> Node | None:
        """The stage that makes `ref`."""
        return next((node for node in self.nodes if node.ref == ref), None)

    def doing(self, stage: str) -> tuple[Node, ...]:
        """The nodes that do one kind of work, in order."""
        return tuple(node for node in self.nodes if node.stage == stage)


def _ref(key: str | None) -> Ref | None:
    return None if key is None else Ref.parse(key)
