"""Models -> their loss on held-out text."""

from collections.abc import Sequence

from configs.continuing import Measure
from tasks.run import Artifact, Run

VERSION = 1


def measure(
    run: Run, label: str, recipe: Measure, *, models: Sequence[Artifact], corpora: Sequence[Artifact]
) -> Artifact:
    """documents.parquet, and a summary with every model's loss on every corpus and its difference to the first model's."""
    return run.stage(
        label, "measure", recipe, kind="rows", version=VERSION, models=tuple(models), corpora=tuple(corpora)
    )
