"""Without a penalty on the KL a policy leaves the language of its start."""

from typing import Any

from benchmarks.claims.lab import Effect, Lab
from configs import Entrant

TEXT = "the token KL penalty prevents collapse: without it gold is lower and the KL grows"
SOURCE = "Zheng et al. 2023; MOSS-RLHF"
MATTERS, UNIT = 0.02, "gold"
RATE = {"learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0, "min_warmup_steps": 0}
# 24 iterations; alarms only recorded, else the ladder would rescue the run without a penalty
HARD: dict[str, Any] = {"iterations": 24, "optimizer": RATE, "tripwires": {"on_alarm": "record"}}
WITH = Entrant(method="ppo", family="online", preset="llama2", config={"kl_coef": 0.1})
WITHOUT = Entrant(method="ppo", family="online", preset="llama2", config={"kl_coef": 0.0})


def stages(lab: Lab) -> list:
    return [
        lab.evaluation("ppo-kl", entrant=WITH, **HARD),
        lab.evaluation("ppo-no-kl", entrant=WITHOUT, **HARD),
    ]


def measure(lab: Lab) -> Effect:
    """Gold with the penalty less gold without, both pushed ten times as hard as in the bake-off."""
    gold, kl = lab.better("ppo-kl", "ppo-no-kl"), lab.better("ppo-no-kl", "ppo-kl", "kl")
    return Effect(gold.value, gold.draws, gold.count, f"{gold.note}; {kl.note}")
