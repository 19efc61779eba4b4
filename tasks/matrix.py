"""Every version under every round's reward models and the judges that steered nothing."""

from collections.abc import Mapping, Sequence

from configs.gates import Matrix
from tasks.run import Artifact, Run

VERSION = 1


def matrix(
    run: Run,
    label: str,
    recipe: Matrix,
    *,
    rewards: Mapping[str, Sequence[Artifact]],
    steered: Mapping[str, str],
    scored: Mapping[str, Artifact],
    judges: Sequence[Artifact],
) -> Artifact:
    """matrix.json of all versions evaluated so far.

    rewards: round -> its reward models; steered: version -> the round whose reward models steered it; scored: source of the
    samples -> the scores that hold them newest.
    """
    c = run.campaign
    chosen = recipe.model_copy(
        update={
            "versions": tuple(run.evaluations),
            "steered": tuple(steered.get(version, "") for version in run.evaluations),
            "rounds": tuple(rewards),
            "models": tuple(len(models) for models in rewards.values()),
            "scored": tuple(scored),
            "judge": c.judge,
            "limits": c.limits,
            "seed": c.seed,
        }
    )
    return run.stage(
        label,
        "matrix",
        chosen,
        kind="report",
        version=VERSION,
        versions=list(run.evaluations.values()),
        rewards=[model for models in rewards.values() for model in models],
        scored=list(scored.values()),
        judges=judges,
    )
