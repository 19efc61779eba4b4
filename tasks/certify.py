"""A round's reward models -> their certificates; one that fails may not steer the round."""

from collections.abc import Sequence

from configs.recipes import Reward
from tasks.launch import StageFailed
from tasks.run import Artifact, Run

VERSION = 1


class Uncertified(StageFailed):
    """A reward model that lacks a passed certificate was about to steer a round."""


def certify(
    run: Run,
    label: str,
    *,
    rewards: Sequence[Artifact],
    before: Sequence[Artifact],
    policy: Artifact,
    prompts: Artifact,
    lessons: Sequence[Sequence[Artifact]],
) -> list[Artifact]:
    """certificate.json of each of a round's reward models; waits for them, because no later stage does.

    before: the reward models that these replace; lessons: the rows that each of them learned from; in the same order.

    Raises:
        Uncertified: a requirement is not met and `certify.on_failure` is stop.
    """
    certificates = []
    for place, model in enumerate(rewards):
        recipe = model.stage.recipe
        assert isinstance(recipe, Reward)
        others = [other for other in rewards if other is not model]
        certificates.append(
            run.stage(
                f"{label}-{recipe.kind}-certify",
                "certify",
                run.campaign.certify.model_copy(
                    update={
                        "reward": recipe,
                        "leakage": run.campaign.leakage,
                        "steering": run.campaign.select.threshold,
                    }
                ),
                kind="certificate",
                version=VERSION,
                reward=model,
                policy=policy,
                prompts=prompts,
                preferences=lessons[place],
                other=others[0] if others else None,
                before=before[place] if place < len(before) else None,
            )
        )
    if run.mode != "plan":
        for certificate, model in zip(certificates, rewards):
            _hold(run, certificate, model)
    return certificates


def _hold(run: Run, certificate: Artifact, model: Artifact) -> None:
    """Wait for a certificate, and stop the campaign if it was not passed."""
    found = certificate.summary() or {}
    failures = found.get("failures") or []
    if found.get("passed"):
        return
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    text = f"{model.label} may not steer a round: {failures[0] if failures else 'no certificate'}{more}"
    if found.get("on_failure") != "record":
        raise Uncertified(
            f"{text}; see certificate.json of {certificate.ref.key}, or set certify.on_failure: record to go on"
        )
    run.listen(certificate.label, {"event": "log", "text": f"{text}; certify.on_failure is record: the round goes on"})
