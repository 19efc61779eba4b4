"""Reward models from much smaller to larger than the policy: what becomes of the policy that each trains?"""

from benchmarks.claims.judges import SIZES, gold, model, policies
from benchmarks.claims.lab import Effect, Lab, mean_effect

TEXT = "the larger the reward model, the better the policy that it trains"
SOURCE = "Gao et al. 2022, figure 3"
MATTERS, UNIT = 0.02, "gold, width 144 less width 24"
NAMES = (*(f"width-{width}" for width in SIZES), "shared")


def stages(lab: Lab) -> list:
    return [*(model(lab, name) for name in NAMES), *policies(lab, NAMES)]


def measure(lab: Lab) -> Effect:
    """Gold of rejection sampling under the largest less that under the smallest."""
    shown = ", ".join(
        f"{name} {gold(lab, name).mean():.3f}" for name in ("width-24", "width-48", "shared", "width-144")
    )
    return mean_effect(gold(lab, "width-144") - gold(lab, "width-24"), shown)
