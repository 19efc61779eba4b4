"""A base model -> the same, trained on."""

from collections.abc import Sequence

from configs.continuing import Continue
from tasks.run import Artifact, Run

VERSION = 1


def continue_pretraining(
    run: Run,
    label: str,
    recipe: Continue,
    *,
    model: Artifact,
    new: Artifact,
    old: Sequence[Artifact] = (),
    previous: Artifact | None = None,
) -> Artifact:
    """A Hugging Face model folder with continued.json: where each corpus was left.

    new, old: corpora of `pack`. previous: the run whose optimizer state is carried on; not read where the recipe resets it.
    """
    carried = recipe.optimizer_state == "carried"
    return run.stage(
        label,
        "continuing",
        recipe,
        kind="model",
        version=VERSION,
        model=model,
        new=new,
        old=tuple(old) or None,
        previous=previous if carried else None,
    )
