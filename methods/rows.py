"""Rows inside a flat batch of responses: pairs and ranked lists, whatever their order."""

import torch
from torch import Tensor


def pair_index(group: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's chosen and rejected response lie: two [N] int64, rows in the order of their first response.

    Raises:
        ValueError: a row that is not exactly one response of rank 0 and one of rank 1.
    """
    bad, first, second = (rank != 0) & (rank != 1), group[rank == 0].sort().values, group[rank == 1].sort().values
    if bad.any() or not torch.equal(first, second) or (first[1:] == first[:-1]).any():
        found = (
            rank[bad].tolist() if bad.any() else f"{int((rank == 0).sum())} chosen, {int((rank == 1).sum())} rejected"
        )
        raise ValueError(f"want pairs, rank 0 = chosen and 1 = rejected, one of each in every row; found {found}")
    chosen, rejected = (rank == 0).nonzero().flatten(), (rank == 1).nonzero().flatten()
    return chosen[group[chosen].argsort(stable=True)], rejected[group[rejected].argsort(stable=True)]


def ranked_lists(group: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as lists sorted by descending `key` [B]: index [G, K] int64 into the batch and present [G, K] bool.

    K is the longest row; where nothing is present the index is 0. Equal keys keep their order.
    """
    by_key = key.argsort(descending=True, stable=True)
    flat = by_key[group[by_key].argsort(stable=True)]
    counts = group.bincount()
    sizes = counts[counts > 0]
    present = torch.arange(int(sizes.max()), device=group.device) < sizes.unsqueeze(-1)
    index = torch.zeros_like(present, dtype=torch.int64)
    index[present] = flat
    return index, present
