"""PPO from the rejection-sampled policy against that policy."""

from benchmarks.claims.lab import Effect, Lab
from configs import read_entrant

PPO = read_entrant("ppo")

TEXT = "PPO after rejection sampling beats rejection sampling alone"
SOURCE = "Llama 2, figure 11"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("ppo-after-rejection", entrant=PPO, start="rejection"), lab.evaluation("rejection")]


def measure(lab: Lab) -> Effect:
    return lab.better("ppo-after-rejection", "rejection")
