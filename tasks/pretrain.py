"""Documents -> a base model with a tokenizer of its own."""

from configs.recipes import Pretrain
from tasks.run import Artifact, Run

VERSION = 1


def pretrain(run: Run, label: str, recipe: Pretrain, *, documents: Artifact) -> Artifact:
    """A Hugging Face model folder."""
    return run.stage(label, "pretrain", recipe, kind="model", version=VERSION, documents=documents)
