"""Responses -> raw scores under the round's reward models."""

from collections.abc import Sequence

from configs.recipes import Score
from tasks.run import Artifact, Run

VERSION = 1


def score(run: Run, label: str, recipe: Score, *, rewards: Sequence[Artifact], samples: Sequence[Artifact]) -> Artifact:
    """Scored rows of all the samples; scores of different reward models are never mixed."""
    return run.stage(label, "score", recipe, kind="rows", version=VERSION, rewards=rewards, samples=samples)
