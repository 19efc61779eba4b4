"""The same pairs, once directly and once through a reward model and PPO."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "DPO on the pairs beats a reward model of the pairs and PPO"
SOURCE = "Rafailov et al. 2023"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("dpo-given"), lab.evaluation("ppo")]


def measure(lab: Lab) -> Effect:
    return lab.better("dpo-given", "ppo")
