"""Rows -> a model, by an offline method's loss."""

from collections.abc import Sequence

from configs.recipes import Train
from tasks.run import Artifact, Run

VERSION = 1


def train(
    run: Run,
    label: str,
    recipe: Train,
    *,
    model: Artifact,
    rows: Sequence[Artifact],
    replay: Artifact | None = None,
    reference: Artifact | None = None,
) -> Artifact:
    """A Hugging Face model folder that began as `model`; `replay` rows are mixed in by the recipe's share."""
    return run.stage(
        label,
        "train",
        recipe,
        kind="model",
        version=VERSION,
        model=model,
        rows=rows,
        replay=replay,
        reference=reference,
    )
