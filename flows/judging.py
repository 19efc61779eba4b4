"""What judges versions and steers nothing: reward models on prompts kept apart, and the matrix of versions and judges."""

from configs import describe
from configs.recipes import Annotate
from tasks import Artifact, Run, annotate, matrix, reward

APART = "judge-"  # before the labels of what is made of the prompts kept apart


def apart(run: Run) -> str | None:
    """Which of the campaign's data are split for the judge models: the pairs that are given, else the prompts."""
    c = run.campaign
    if c.judge_model is None:
        return None
    return "preferences" if c.data.preferences and c.annotate.annotator == "dataset" else "prompts"


def judge_models(run: Run, rows: dict[str, Artifact], policy: Artifact) -> list[Artifact]:
    """Reward models as the campaign's own, from another seed and on prompts that no round sees; none if not asked for."""
    c, kind = run.campaign, apart(run)
    if c.judge_model is None or kind is None:
        return []
    asked = Annotate.model_validate(
        {
            **c.annotate.model_dump(),
            "prompts": c.judge_model.prompts,
            "batches": 1,
            "round": 1,
            "seed": c.seed + 1,
        }
    )
    given = rows[APART + kind]
    dealt = kind == "preferences"
    pairs = annotate(
        run,
        f"{APART}annotate",
        asked,
        policy_a=None if dealt else policy,
        policy_b=None if dealt else policy,
        prompts=rows["prompts"] if dealt else given,
        preferences=given if dealt else None,
        rewards=None,
    )
    return [
        reward(run, f"{APART}{name}", recipe.model_copy(update={"seed": c.seed + 1}), model=policy, preferences=[pairs])
        for name, recipe in sorted(c.rewards.items())
        if "responses"
        not in describe(recipe.method).columns  # those learn from rankings, which are given for all rounds
    ]


def side_by_side(run: Run, rewards: dict[str, list[Artifact]], steered: dict[str, str], judges: list[Artifact]) -> None:
    """Put every version under every round's reward models and the judges; nothing to do without reward models.

    rewards: round -> its reward models; steered: version -> the round whose reward models steered it.
    """
    if rewards:
        scored = {
            f"round-{label.removesuffix('-score').removeprefix('r')}": artifact
            for label, artifact in run.artifacts.items()
            if artifact.stage.work == "score"
        }
        matrix(run, "matrix", run.campaign.matrix, rewards=rewards, steered=steered, scored=scored, judges=judges)
