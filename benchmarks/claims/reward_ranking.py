"""Does the order of reward models by accuracy foretell the order of the policies that they train?"""

import numpy as np

from benchmarks.claims.judges import ALL, accuracy, answers, gold, model, policies
from benchmarks.claims.lab import Effect, Lab, rank_effect

TEXT = "the ranking of reward models predicts the ranking of the policies they train"
SOURCE = "an open question: Lambert et al. 2024 (RewardBench)"
MATTERS, UNIT = 0.5, "rank correlation"


def stages(lab: Lab) -> list:
    return [*answers(lab), *(model(lab, name) for name in ALL), *policies(lab, ALL)]


def measure(lab: Lab) -> Effect:
    """Rank correlation of the models' accuracy with the gold of rejection sampling under each."""
    found = accuracy(lab, ALL)
    right, good = np.stack([found[name] for name in ALL]), np.stack([gold(lab, name) for name in ALL])
    shown = ", ".join(f"{n} {r:.3f} {g:.3f}" for n, r, g in zip(ALL, right.mean(axis=1), good.mean(axis=1)))
    return rank_effect(right, good, f"accuracy and gold: {shown}")
