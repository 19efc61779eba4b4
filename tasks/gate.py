"""Whether a version may be built upon, and what a rejected one means for the campaign."""

from configs.gates import Gate, Verdict
from tasks.run import Artifact, Run

VERSION = 1


def gate(run: Run, label: str, rules: Gate, *, version: str, best: str) -> Artifact:
    """verdict.json: accepted, warned or rejected, with reasons. No later stage reads it: it only chooses what they read."""
    return run.stage(
        label,
        "gate",
        Verdict(rules=rules, version=version, best=best),
        kind="report",
        version=VERSION,
        device=False,
        evaluation=run.evaluations[version],
        best=run.evaluations[best],
    )


def leads(verdict: Artifact) -> bool:
    """Whether the version is the best one from now on (in a plan: supposed to be)."""
    found = verdict.summary()
    return found is None or bool(found["leads"])


def accepted(run: Run, verdict: Artifact) -> bool:
    """Whether the version was accepted (in a plan: supposed to be).

    If it was not and the config says that this ends the campaign, `run.rejected` says why.
    """
    found = verdict.summary()
    if found is None or found["accepted"]:
        return True
    if found["on_reject"] == "stop":
        why = "; ".join(reason["text"] for reason in found["reasons"] if reason["action"] == "reject")
        recipe = verdict.stage.recipe
        assert isinstance(recipe, Verdict)
        run.rejected = (
            f"{run.campaign.name}: the gate rejected {recipe.version}: {why}; gate.on_reject is stop, so the campaign ends "
            f"here (best version: {recipe.best}; fall_back would go on from it)"
        )
    return False
