"""At equal samples: many rounds of one response (PPO) against one round of the best of K."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "depth (PPO) beats breadth (best of K, one step) at equal samples"
SOURCE = "Llama 2, 3.2.3"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("ppo"), lab.evaluation("rejection")]


def measure(lab: Lab) -> Effect:
    return lab.better("ppo", "rejection")
