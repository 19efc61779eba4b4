"""The divergence of best-of-n from the policy is at most log n - (n - 1) / n."""

import math
from collections import Counter

from benchmarks.claims.lab import Effect, Lab, mean_effect

TEXT = "the KL of best-of-n is bounded by log n - (n - 1) / n"
SOURCE = "Stiennon et al. 2020; Gao et al. 2022"
MATTERS, UNIT = 0.01, "nats"


def stages(lab: Lab) -> list:
    return [lab.pool]


def divergence(shares: list[tuple[float, float]], n: int) -> float:
    """KL(best-of-n || policy) of a policy with outcomes (score, probability), exactly; ties share their group's gain."""
    total, below = 0.0, 0.0
    for score in sorted({s for s, _ in shares}):
        here = sum(p for s, p in shares if s == score)
        chosen = (below + here) ** n - below**n
        total += chosen * math.log(chosen / here)
        below += here
    return total


def measure(lab: Lab) -> Effect:
    """Bound less exact KL, with the policy of each prompt taken to be its own 8 samples."""
    slack, n = [], 4
    bound = math.log(n) - (n - 1) / n
    for rows in lab.by_prompt():
        texts = Counter(row["text"] for row in rows)
        scores = {row["text"]: row["helpfulness"] for row in rows}
        slack.append(bound - divergence([(scores[t], c / len(rows)) for t, c in texts.items()], n))
    return mean_effect(
        slack, f"n {n}: bound {bound:.3f}, mean KL {bound - sum(slack) / len(slack):.3f}, least slack {min(slack):.3f}"
    )
