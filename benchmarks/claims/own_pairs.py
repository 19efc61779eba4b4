"""DPO on pairs of its own samples against DPO on given pairs."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "pairs from the policy itself, ranked by the reward models, beat given pairs"
SOURCE = "Liu et al. 2023; Yuan et al. 2023"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("dpo"), lab.evaluation("dpo-given"), lab.dpo_on_others_pairs]


def measure(lab: Lab) -> dict[str, Effect]:
    return {
        "given pairs of the same policy": lab.better("dpo", "dpo-given"),
        "given pairs of another model": lab.better("dpo", "dpo-others"),
    }
