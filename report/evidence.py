"""What a campaign has shown so far: the comparison of all versions, or what its evaluations say until that is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from report.archive import Archive, Row
from report.view import View

BASE = "base"
FIRST = "v0"  # what versions are measured against


@dataclass(frozen=True)
class Standing:
    """The numbers of every version that was evaluated.

    entries: label -> engine.versions.describe and `categories`.  pairs: label -> other label -> measure -> comparison.
    one_scale: whether all reward scores are under the same reward models, so that they may be compared.
    """

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trend: Mapping[str, float | None] = field(default_factory=dict)
    one_scale: bool = False


class Evidence:
    """A view and an archive, read once for all sections."""

    def __init__(self, view: View, archive: Archive) -> None:
        self.view, self.archive = view, archive

    @cached_property
    def done(self) -> frozenset[str]:
        """Labels of the stages that have ended."""
        return frozenset(node.label for node in self.view.nodes if self.archive.manifest(node.ref) is not None)

    @cached_property
    def standing(self) -> Standing:
        """From the comparison if there is one, else from the evaluations."""
        table = self.archive.json(self.view.compare, "table.json")
        if table is not None:
            entries = {one["version"]: one for one in table["versions"]}
            return Standing(entries, table["matrix"], table["trend"], one_scale=True)
        found = {v.label: s for v in self.view.versions if (s := self.archive.summary(v.evaluate))}
        return Standing(found, {label: one.get("against", {}) for label, one in found.items()})

    @cached_property
    def verdicts(self) -> dict[str, Mapping[str, Any]]:
        """label -> what the gate decided: verdict, accepted, by which measure, the reasons."""
        found = ((v.label, self.archive.summary(v.gate)) for v in self.view.versions)
        return {label: one for label, one in found if one}

    @cached_property
    def responses(self) -> dict[str, list[Row]]:
        """label -> that version's held-out responses with their scores, in the same order of prompts."""
        found: dict[str, list[Row]] = {}
        for row in self.archive.rows(self.view.compare, "scored.parquet"):
            found.setdefault(row["version"], []).append(row)
        if found:
            return found
        for version in self.view.versions:
            rows = list(self.archive.rows(version.evaluate, "responses.parquet"))
            if rows:
                found[version.label] = rows
        return found

    @property
    def evaluated(self) -> list[str]:
        """Labels with numbers, oldest first."""
        return [version.label for version in self.view.versions if version.label in self.standing.entries]

    @property
    def final(self) -> str | None:
        """The newest accepted version after v0, else the newest one; None before there is any."""
        later = [label for label in self.evaluated if label not in (BASE, FIRST)]
        accepted = [label for label in later if self.verdicts.get(label, {}).get("accepted")]
        return next(reversed(accepted or later), None)

    def pair(self, label: str, other: str, measure: str) -> Mapping[str, Any] | None:
        """A version against another by "gold" or "score"; None where they were not compared."""
        found = self.standing.pairs.get(label, {}).get(other, {}).get(measure)
        return found if isinstance(found, Mapping) else None
