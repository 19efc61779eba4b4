"""Easy pairs first against hard pairs first."""

from benchmarks.claims.lab import Effect, Lab
from configs import Entrant

REVERSED = Entrant(method="curriculum-dpo", family="preference", config={"direction": "hard-to-easy"})

TEXT = "a curriculum from easy to hard pairs beats hard to easy"
SOURCE = "Xu et al. 2023"
MATTERS, UNIT = 0.02, "gold"


def stages(lab: Lab) -> list:
    return [lab.evaluation("curriculum-dpo"), lab.evaluation("curriculum-dpo-reversed", entrant=REVERSED)]


def measure(lab: Lab) -> Effect:
    return lab.better("curriculum-dpo", "curriculum-dpo-reversed")
