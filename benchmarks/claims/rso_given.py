"""Pairs drawn from the policy's own optimum against the pairs that people gave."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "RSO beats DPO on the given pairs"
SOURCE = "Liu et al. 2023, table 1"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("rso"), lab.evaluation("dpo-given"), lab.dpo_on_others_pairs]


def measure(lab: Lab) -> dict[str, Effect]:
    return {
        "given pairs of the same policy": lab.better("rso", "dpo-given"),
        "given pairs of another model": lab.better("rso", "dpo-others"),
    }
