"""ReMax needs no critic: less memory and less time."""

import numpy as np

from benchmarks.claims.lab import Effect, Lab, mean_effect
from configs import read_entrant
from flows.rounds import base_of
from tasks import Artifact, reward

TEXT = "ReMax saves memory and time against PPO"
SOURCE = "Li et al. 2023"
MATTERS, UNIT = 0.1, "of PPO's"
TIMES = 3  # each method, in turn; other random numbers each time
ITERATIONS = 2
BATCH = {"batch_size": 16, "minibatch_size": 8}
# 9 million parameters: the bake-off's models would vanish beside the 450 MB of the libraries.
WIDE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
METHODS = ("remax", "ppo")


def stages(lab: Lab) -> list:
    """Short runs of a policy, a reference, a reward model and a critic of one size; what they learn does not matter."""
    shared, run = lab.shared, lab.run
    pretrain = lab.campaign.base.pretrain
    assert pretrain is not None
    if "wide" not in lab.policies:
        wide = pretrain.model_copy(update={"architecture": {**pretrain.architecture, **WIDE}, "steps": 10})
        base = lab.campaign.base.model_copy(update={"pretrain": wide})
        lab.policies["wide"] = base_of(run, shared.label("wide-base"), base, run.artifacts[shared.label("documents")])
        recipe = lab.campaign.rewards["helpfulness"].model_copy(update={"epochs": 0.05})
        judge = reward(
            run, shared.label("wide-helpfulness"), recipe, model=lab.policies["wide"], preferences=[shared.preferences]
        )
        among = lab.variant("wide", rewards=[judge])
        for time in range(TIMES):
            for method in METHODS:
                lab.policy(f"wide-{method}-{time}", entrant=read_entrant(method), start="wide", among=among,
                           iterations=ITERATIONS, seed=time, **BATCH)  # fmt: skip
    return runs(lab, "remax") + runs(lab, "ppo")


def runs(lab: Lab, method: str) -> list[Artifact]:
    return [lab.policies[f"wide-{method}-{time}"] for time in range(TIMES)]


def measure(lab: Lab) -> dict[str, Effect]:
    """CPU seconds and peak memory of the processes. ReMax samples a greedy response for each rollout, so it costs two."""
    cost = {m: [lab.record(stage) for stage in runs(lab, m)] for m in METHODS}
    seconds = {m: np.array([one["cpu_seconds"] for one in records]) for m, records in cost.items()}
    peak = {m: np.array([one["peak_bytes"] for one in records]) / 1e6 for m, records in cost.items()}
    each = f"CPU {seconds['remax'].mean():.0f} s against {seconds['ppo'].mean():.0f} s for {ITERATIONS * 16} rollouts"
    memory = f"peak {peak['remax'].mean():.0f} MB against {peak['ppo'].mean():.0f} MB, libraries included"
    return {
        "memory": mean_effect(1 - peak["remax"] / peak["ppo"], memory),
        "time for as many rollouts": mean_effect(1 - seconds["remax"] / seconds["ppo"], each),
        "time for as many sampled responses": mean_effect(1 - seconds["remax"] / (2 * seconds["ppo"]), "half as many"),
    }
