"""PPO far beyond the bake-off's budget: does gold turn while the reward models' score rises?"""

import numpy as np

from benchmarks.claims.lab import Effect, Lab, mean_effect
from configs import Entrant

TEXT = "gold peaks while the proxy keeps rising, under PPO"
SOURCE = "Gao et al. 2022, figure 1"
MATTERS, UNIT = 0.02, "of the measure"
LEGS = (12, 12, 24, 48)  # iterations of each leg; the bake-off's PPO has 48 in all
PPO = Entrant(
    method="ppo", family="online", preset="llama2", config={"kl_coef": 0.0}
)  # as in most of the source's runs
NAMES = tuple(f"ppo-{sum(LEGS[: i + 1])}" for i in range(len(LEGS)))


def stages(lab: Lab) -> list:
    before, found = "v0", [lab.evaluation("v0")]
    for name, iterations in zip(NAMES, LEGS):
        watch = {"on_alarm": "record"}
        found.append(lab.evaluation(name, entrant=PPO, start=before, iterations=iterations, tripwires=watch))
        before = name
    return found


def measure(lab: Lab) -> dict[str, Effect]:
    """How far gold falls from its peak to the end, and how far the score rises meanwhile.

    The peak is where one half of the prompts has it, and what is reported is of the other half: the highest of several
    noisy means would look like a peak where there is none.
    """
    names = ("v0", *NAMES)
    gold, score = (np.stack([lab.held_out(name, column) for name in names]) for column in ("gold", "score"))
    score = score / score[0].std()
    falls, rises = [], []
    for half in (0, 1):
        peak = int(gold[:, half::2].mean(axis=1).argmax())
        falls.append(gold[peak, 1 - half :: 2] - gold[-1, 1 - half :: 2])
        rises.append(score[-1, 1 - half :: 2] - score[peak, 1 - half :: 2])
    kl = [lab.held_out(name, "kl").mean() for name in names]
    shown = ", ".join(
        f"{n} {g:.3f} {s:.2f} {d:.1f}" for n, g, s, d in zip(names, gold.mean(axis=1), score.mean(axis=1), kl)
    )
    return {
        "fall of gold from its peak to the end": mean_effect(
            np.concatenate(falls), f"gold, score in sd of v0, KL: {shown}"
        ),
        "rise of the score meanwhile, in sd of v0": mean_effect(np.concatenate(rises)),
    }
