"""A critic that is trained before the policy moves explains the first returns better."""

from benchmarks.claims.lab import Effect, Lab, difference_effect
from configs import read_entrant

TEXT = "critic warm-up helps early"
SOURCE = "Zheng et al. 2023, 5.3"
MATTERS, UNIT = 0.1, "of the measure"
EARLY = 10  # iterations
PPO = read_entrant("ppo")


def stages(lab: Lab) -> list:
    return [
        lab.policy("ppo"),
        lab.policy("ppo-warm", entrant=PPO, warmup_batches=2, warmup_steps=20, warmup_target=1.0),
    ]


def measure(lab: Lab) -> dict[str, Effect]:
    """The first ten iterations of the policy, with warm-up less without, taken as independent."""
    early = {
        name: [row for row in lab.curve(lab.policies[name]) if not row["warmup"]][:EARLY]
        for name in ("ppo-warm", "ppo")
    }
    column = lambda name, key: [row[key] for row in early[name]]
    mean = lambda values: sum(values) / len(values)
    found = {}
    for part, key in (("explained variance of the critic", "explained_variance"), ("score of the rollouts", "score")):
        a, b = column("ppo-warm", key), column("ppo", key)
        found[part] = difference_effect(a, b, f"with {mean(a):.2f}, without {mean(b):.2f}")
    return found
