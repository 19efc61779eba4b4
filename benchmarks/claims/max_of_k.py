"""More samples a prompt raise the best of them and not the middle one."""

from statistics import median

from benchmarks.claims.lab import Effect, Lab, mean_effect
from engine.statistics import expected_max

TEXT = "the best of K grows with K while the median does not"
SOURCE = "Llama 2, figure 7"
MATTERS, UNIT = 0.25, "sd of the score"


def stages(lab: Lab) -> list:
    return [lab.pool]


def measure(lab: Lab) -> Effect:
    """Best of 8 less best of 1, less the same for the median, in standard deviations of the helpfulness score."""
    groups = [[row["helpfulness"] for row in rows] for rows in lab.by_prompt()]
    every = [score for scores in groups for score in scores]
    mean = sum(every) / len(every)
    spread = (sum((s - mean) ** 2 for s in every) / len(every)) ** 0.5
    best = [(expected_max(s, len(s)) - expected_max(s, 1)) / spread for s in groups]
    middle = [(median(s) - sum(s) / len(s)) / spread for s in groups]
    note = (
        f"best {sum(best) / len(best):+.2f}, median {sum(middle) / len(middle):+.2f} sd from K = 1 to {len(groups[0])}"
    )
    return mean_effect([b - abs(m) for b, m in zip(best, middle)], note)
