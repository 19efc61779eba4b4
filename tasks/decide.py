"""Measurements -> what is to be done about alignment."""

from collections.abc import Sequence

from configs.deciding import Decide
from tasks.run import Artifact, Run

VERSION = 1


def decide(
    run: Run, label: str, recipe: Decide, *, measure: Artifact, old: Artifact, candidates: Sequence[Artifact]
) -> Artifact:
    """decision.json: nothing, short-sft or rounds, and why. `old`, candidates: evaluations on the same prompts."""
    return run.stage(
        label,
        "decide",
        recipe,
        kind="rows",
        version=VERSION,
        device=False,
        measure=measure,
        old=old,
        candidates=candidates,
    )
