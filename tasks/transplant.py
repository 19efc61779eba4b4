"""A chat model on an old base -> on a new one, without training."""

from configs.continuing import Transplant
from tasks.run import Artifact, Run

VERSION = 1


def transplant(
    run: Run, label: str, recipe: Transplant, *, chat: Artifact, old_base: Artifact, new_base: Artifact
) -> Artifact:
    """A Hugging Face model folder: chat + (new base - old base)."""
    return run.stage(
        label, "transplant", recipe, kind="model", version=VERSION, device=False,
        chat=chat, old_base=old_base, new_base=new_base,
    )  # fmt: skip
