"""Statistics inside the groups of one prompt's responses, as [B] tensors."""

import torch
from torch import Tensor


def group_sums(x: Tensor, group: Tensor) -> Tensor:
    """Sum of each response's group: [B] fp32."""
    same = (group.unsqueeze(0) == group.unsqueeze(1)).float()
    return same @ x.float()


def group_sizes(group: Tensor) -> Tensor:
    """Responses in each response's group: [B] fp32."""
    return group_sums(torch.ones_like(group), group)


def group_means(x: Tensor, group: Tensor) -> Tensor:
    """Mean of each response's group: [B] fp32."""
    return group_sums(x, group) / group_sizes(group)


def require_groups(method: str, group: Tensor) -> Tensor:
    """Group sizes [B], all at least 2.

    Raises:
        ValueError: a prompt with one response has nothing to be compared with.
    """
    sizes = group_sizes(group)
    if bool((sizes < 2).any()):
        lonely = int(group[sizes < 2][0])
        raise ValueError(f"{method}: prompt {lonely} has one response: want k of at least 2 responses a prompt")
    return sizes
