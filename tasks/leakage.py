"""Evaluation against training rows: leaks counted and listed, and a campaign with them refused."""

from tasks.launch import StageFailed
from tasks.run import Artifact, Run

VERSION = 1


class Leaked(StageFailed):
    """What the campaign is evaluated by stands in what it trains on."""


def screen(
    run: Run, label: str, *, prompts: Artifact, demonstrations: Artifact | None, preferences: Artifact | None
) -> Artifact:
    """leakage.json and leaks.jsonl of the campaign's data; waits for them, because no later stage does.

    Raises:
        Leaked: leaks were found and `leakage` is refuse.
    """
    recipe = run.campaign.leakage
    found = run.stage(
        label,
        "leakage",
        recipe,
        kind="rows",
        version=VERSION,
        device=False,
        prompts=prompts,
        demonstrations=demonstrations,
        preferences=preferences,
    )
    problems = (found.summary() or {}).get("problems") if run.mode != "plan" else None
    if problems:
        text = f"leakage: {problems[0]}; see leaks.jsonl of {found.ref.key}"
        if recipe.on_leak == "refuse":
            raise Leaked(f"{text}, take them out of the training rows, or set leakage: record to go on")
        run.listen(label, {"event": "log", "text": f"{text}; leakage is record: the campaign goes on"})
    return found
