"""Reward models from much smaller to larger than the policy: are they right more often?"""

from benchmarks.claims.judges import SIZES, accuracy, answers, model
from benchmarks.claims.lab import Effect, Lab, mean_effect

TEXT = "the accuracy of a reward model rises with its size"
SOURCE = "Llama 2, figure 6; Gao et al. 2022"
MATTERS, UNIT = 0.03, "accuracy, width 144 less width 24"
NAMES = (*(f"width-{width}" for width in SIZES), "shared")


def stages(lab: Lab) -> list:
    return [*answers(lab), *(model(lab, name) for name in NAMES)]


def measure(lab: Lab) -> Effect:
    """On held-out responses ordered by gold, paired over prompts."""
    found = accuracy(lab, NAMES)
    shown = {name: found[name] for name in ("width-24", "width-48", "shared", "width-144")}
    return mean_effect(
        found["width-144"] - found["width-24"], ", ".join(f"{name} {v.mean():.3f}" for name, v in shown.items())
    )
