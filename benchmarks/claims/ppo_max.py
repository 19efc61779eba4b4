"""Each of PPO-max's tricks switched off in turn: how much does each step matter?"""

from typing import Any

from benchmarks.claims.lab import Effect, Lab
from configs import Entrant

TEXT = "PPO-max is better with this trick than without it"
SOURCE = "Zheng et al. 2023, figure 5"
MATTERS, UNIT = 0.02, "gold"
LOOP: dict[str, Any] = {  # the paper's, at the bake-off's batch sizes and learning rates, half of its iterations
    "iterations": 24, "warmup_batches": 2, "warmup_steps": 20, "warmup_target": 0.2, "critic_head": "reward", "ptx_weight": 0.1,
    "tripwires": {"on_alarm": "record"},
}  # fmt: skip
UNCLIPPED = {"learning_rate": 1e-4, "schedule": "constant", "warmup": 0.0, "min_warmup_steps": 0, "clip": 0.0}
OFF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # trick: config of the method, settings of the loop
    "KL penalty a token": ({"kl_coef": 0.0}, {}),
    "reward normalisation and clipping": ({"reward_scaling": "none", "reward_clip": 0.0}, {}),
    "value clipping": ({"value_clip": 0.0}, {}),
    "critic from the reward model and pre-trained": ({}, {"critic_head": "zero", "warmup_batches": 0}),
    "GAE (lambda 0.9 against 1)": ({"lam": 1.0}, {}),
    "clipped surrogate": ({"clip": 0.0}, {}),
    "gradient clipping": ({}, {"optimizer": UNCLIPPED, "critic_optimizer": {**UNCLIPPED, "learning_rate": 5e-4}}),
    "language-model term": ({}, {"ptx_weight": 0.0}),
}


def stages(lab: Lab) -> list:
    found = [lab.evaluation("ppo-max", entrant=_entrant({}), **LOOP)]
    for place, (config, loop) in enumerate(OFF.values()):
        found.append(lab.evaluation(f"ppo-max-{place}", entrant=_entrant(config), **{**LOOP, **loop}))
    return found


def _entrant(config: dict[str, Any]) -> Entrant:
    return Entrant(method="ppo", family="online", preset="ppo-max", config=config)


def measure(lab: Lab) -> dict[str, Effect]:
    """Gold of the whole less gold without the trick; the KL of both says how far they went."""
    found = {}
    for place, trick in enumerate(OFF):
        gold, kl = (lab.better("ppo-max", f"ppo-max-{place}", column) for column in ("gold", "kl"))
        without = lab.held_out(f"ppo-max-{place}")
        note = f"{lab.held_out('ppo-max').mean():.3f} with, {without.mean():.3f} without; KL {kl.value:+.2f} with it"
        found[trick] = Effect(gold.value, gold.draws, gold.count, note)
    return found
