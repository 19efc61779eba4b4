"""The evaluations of a bake-off's competitors -> one ranking."""

from collections.abc import Sequence

from configs.recipes import Rank
from tasks.run import Artifact, Run

VERSION = 1


def rank(run: Run, label: str, recipe: Rank, *, evaluations: Sequence[Artifact]) -> Artifact:
    """ranking.json: competitors best first, every pair with interval and corrected p-value."""
    return run.stage(label, "rank", recipe, kind="rows", version=VERSION, device=False, evaluations=evaluations)
