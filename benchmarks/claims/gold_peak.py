"""Best of n, and DPO for two epochs and for six: does gold turn while the reward models' score rises?

The DPO part was written after its numbers had been seen (they are those of `dpo_ppo`); best of n before.
"""

import numpy as np

from benchmarks.claims import dpo_ppo
from benchmarks.claims.lab import Effect, Lab, mean_effect
from engine.select import ranked
from engine.statistics import best_of_n

TEXT = "gold peaks while the proxy keeps rising"
SOURCE = "Gao et al. 2022, figure 1"
MATTERS, UNIT = 0.02, "of the measure"


def stages(lab: Lab) -> list:
    return [lab.pool, *dpo_ppo.stages(lab)]


def measure(lab: Lab) -> dict[str, Effect]:
    """How far gold falls from its peak to the end; for DPO also how far the score rises meanwhile.

    Best of n: n is where one half of the prompts has the peak, what is reported is of the other half.
    """
    prompts = lab.by_prompt()
    sizes = range(1, max(len(rows) for rows in prompts) + 1)
    gold = np.array(
        [_curve(rows, sizes, lab.campaign.select.threshold) for rows in prompts if len(rows) == len(sizes)]
    ).T
    falls = []
    for half in (0, 1):
        peak = int(gold[:, half::2].mean(axis=1).argmax())
        falls.append(gold[peak, 1 - half :: 2] - gold[-1, 1 - half :: 2])
    shown = " ".join(f"{value:.3f}" for value in gold.mean(axis=1))
    fall, rise = lab.better("dpo-given", "dpo-given-long"), lab.better("dpo-given-long", "dpo-given", "score")
    return {
        "best of n, fall of gold": mean_effect(
            np.concatenate(falls), f"gold of the proxy's best of 1 to {len(sizes)}: {shown}"
        ),
        "DPO, fall of gold from two epochs to six": fall,
        "DPO, rise of the score meanwhile": rise,
    }


def _curve(rows: list, sizes: range, threshold: float) -> list[float]:
    """Gold of the proxy's best of n of one prompt's samples, for each n."""
    candidates = ranked(rows, threshold)
    places = [-float(candidate["rank"]) for candidate in candidates]
    return [best_of_n(places, [candidate["gold"] for candidate in candidates], n) for n in sizes]
