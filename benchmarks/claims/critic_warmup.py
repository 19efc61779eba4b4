"""A critic that is trained before the policy moves explains the first returns better."""

from benchmarks.claims.lab import Effect, Lab, difference_effect
from configs import read_entrant

TEXT = "critic warm-up helps early"
SOURCE = "Zheng et al. 2023, 5.3"
MATTERS, UNIT = 0.1, "explained variance"
EARLY = 10  # iterations
PPO = read_entrant("ppo")


def stages(lab: Lab) -> list:
    return [
        lab.policy("ppo"),
        lab.policy("ppo-warm", entrant=PPO, warmup_batches=2, warmup_steps=20, warmup_target=1.0),
    ]


def measure(lab: Lab) -> Effect:
    """Explained variance of the critic over the first ten iterations of the policy, with warm-up less without."""
    early = {}
    for name in ("ppo-warm", "ppo"):
        curve = [row for row in lab.curve(lab.policies[name]) if not row["warmup"]]
        early[name] = [row["explained_variance"] for row in curve[:EARLY]]
    means = {name: sum(v) / len(v) for name, v in early.items()}
    return difference_effect(
        early["ppo-warm"], early["ppo"], f"with {means['ppo-warm']:.2f}, without {means['ppo']:.2f}"
    )
