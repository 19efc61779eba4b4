"""Preferences of one round."""

from collections.abc import Sequence

from configs.recipes import Annotate
from tasks.run import Artifact, Run

VERSION = 1


def annotate(
    run: Run,
    label: str,
    recipe: Annotate,
    *,
    policy_a: Artifact | None,
    policy_b: Artifact | None,
    prompts: Artifact | None,
    preferences: Artifact | None = None,
    rewards: Sequence[Artifact] | None = None,
) -> Artifact:
    """Preference rows: two responses from two policies judged, or a batch of given pairs dealt out."""
    return run.stage(
        label,
        "annotate",
        recipe,
        kind="rows",
        version=VERSION,
        policy_a=policy_a,
        policy_b=policy_b,
        prompts=prompts,
        preferences=preferences,
        rewards=rewards,
    )
