"""An existing Hugging Face model -> a base model of the campaign."""

from configs.recipes import Adopt
from tasks.run import Artifact, Run

VERSION = 1


def adopt(run: Run, label: str, recipe: Adopt) -> Artifact:
    """A Hugging Face model folder with pad and EOS made sure of."""
    return run.stage(label, "adopt", recipe, kind="model", version=VERSION)
