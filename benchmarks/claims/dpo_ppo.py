"""The same pairs, once directly and once through reward models and PPO."""

from benchmarks.claims.lab import Effect, Lab
from configs import read_entrant

TEXT = "DPO on the pairs beats reward models of the pairs and PPO"
SOURCE = "Rafailov et al. 2023"
MATTERS, UNIT = 0.02, "gold"
EPOCHS = 6  # as many CPU seconds: two epochs of DPO took 21, both reward models 20 and PPO 45


def stages(lab: Lab) -> list:
    longer = lab.evaluation("dpo-given-long", entrant=read_entrant("dpo-given"), epochs=EPOCHS)
    return [lab.evaluation("dpo-given"), longer, lab.evaluation("ppo")]


def measure(lab: Lab) -> dict[str, Effect]:
    return {
        "the same pairs": lab.better("dpo-given", "ppo"),
        "the same pairs and compute": lab.better("dpo-given-long", "ppo"),
    }
