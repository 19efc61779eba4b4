"""Preferences so far -> a scalar reward model."""

from collections.abc import Sequence

from configs.recipes import Reward
from tasks.run import Artifact, Run

VERSION = 1


def reward(run: Run, label: str, recipe: Reward, *, model: Artifact, preferences: Sequence[Artifact]) -> Artifact:
    """A Hugging Face sequence-classification folder (one logit) that began as the chat model `model`."""
    return run.stage(label, "reward", recipe, kind="reward", version=VERSION, model=model, preferences=preferences)
