"""The piecewise rule that makes one ranking of two scores (METHODS 4.1)."""

from collections.abc import Sequence

import torch

from methods import ops


def combine(
    helpfulness: Sequence[float], safety: Sequence[float | None], is_safety: Sequence[bool], threshold: float
) -> tuple[list[int], list[float]]:
    """The piecewise rule, as something to sort by: (branch, score), higher is better.

    Without a safety model everything is ranked by helpfulness.
    """
    if any(score is None for score in safety):
        return [1] * len(helpfulness), list(map(float, helpfulness))
    found = ops.piecewise(torch.tensor(helpfulness), torch.tensor(safety), torch.tensor(is_safety), threshold)
    return found.branch.tolist(), found.score.tolist()
