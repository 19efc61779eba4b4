"""A version on the held-out prompts, and all versions side by side."""

from collections.abc import Sequence

from configs.recipes import Compare, Evaluate
from tasks.run import Artifact, Run

VERSION = 1


def evaluate(
    run: Run,
    label: str,
    recipe: Evaluate,
    *,
    policy: Artifact,
    reference: Artifact,
    rewards: Sequence[Artifact],
    prompts: Artifact,
    earlier: Sequence[Artifact],
    judges: Sequence[Artifact] = (),
) -> Artifact:
    """responses.parquet and summary.json: the version against every earlier one, which the gate reads."""
    return run.stage(
        label,
        "evaluate",
        recipe,
        kind="rows",
        version=VERSION,
        policy=policy,
        reference=reference,
        rewards=rewards,
        prompts=prompts,
        earlier=earlier,
        judges=judges,
    )


def compare(
    run: Run,
    label: str,
    recipe: Compare,
    *,
    versions: Sequence[Artifact],
    rewards: Sequence[Artifact],
    judges: Sequence[Artifact] = (),
) -> Artifact:
    """table.json: every version's held-out responses under the last reward models."""
    return run.stage(
        label, "compare", recipe, kind="rows", version=VERSION, versions=versions, rewards=rewards, judges=judges
    )
