"""DPO on pairs of its own samples against DPO on the given pairs."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "pairs from the policy itself beat given pairs"
SOURCE = "Liu et al. 2023; Yuan et al. 2023"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("dpo"), lab.evaluation("dpo-given")]


def measure(lab: Lab) -> Effect:
    return lab.better("dpo", "dpo-given")
