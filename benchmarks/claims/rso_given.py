"""Pairs drawn from the policy's own optimum against the pairs that people gave."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "RSO beats DPO on the given pairs"
SOURCE = "Liu et al. 2023, table 1"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("rso"), lab.evaluation("dpo-given")]


def measure(lab: Lab) -> Effect:
    return lab.better("rso", "dpo-given")
