"""Scored responses -> training rows."""

from collections.abc import Sequence

from configs.recipes import Select
from tasks.run import Artifact, Run

VERSION = 1


def select(run: Run, label: str, recipe: Select, *, scored: Sequence[Artifact]) -> Artifact:
    """The rows that the method's `select` makes, and audit.parquet with every candidate."""
    return run.stage(label, "select", recipe, kind="rows", version=VERSION, device=False, scored=scored)
