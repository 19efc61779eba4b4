"""A policy improved on its own rollouts."""

from collections.abc import Sequence

from configs.recipes import Online
from tasks.run import Artifact, Run

VERSION = 1


def online(
    run: Run,
    label: str,
    recipe: Online,
    *,
    policy: Artifact,
    reference: Artifact,
    rewards: Sequence[Artifact],
    prompts: Artifact,
    examples: Artifact | None = None,
) -> Artifact:
    """A Hugging Face model folder; `examples` feed the pretraining-loss term where the method has one."""
    return run.stage(
        label,
        "online",
        recipe,
        kind="model",
        version=VERSION,
        policy=policy,
        reference=reference,
        rewards=rewards,
        prompts=prompts,
        examples=examples,
    )
