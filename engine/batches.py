"""Sequences as tensors, and the order in which rows are seen. Letters: B sequences, L tokens, R response tokens.

Sequences are padded on the right only. Under causal attention a real token never sees what follows it, so no attention mask
and no position ids are needed, and the fast kernels apply; every position that matters is named by index, never found by
looking for the pad id (METHODS 0.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import StageError

Ids = Sequence[int]
# Branches of a tree are attended to by themselves where that leaves so little of all products of its tokens with each other,
# and these are so many (measured: 4 branches of 200 tokens on a prompt of 200 took 0.4 of the time, 8 of 20 on 50 took 1.2),
# and the prompt's keys, copied for each, are not too many for the memory: this many for a token of the tree.
BRANCHED, LEAST, COPIES = 0.4, 256**2, 3.0


@dataclass(frozen=True, eq=False)
class Branches:
    """What branches off a tree's prompt: C runs of at most n tokens."""

    edges: list[int]  # where the prompt of P tokens ends, and each branch
    bias: Tensor  # [C, 1, n, P + n] added to the scores of each branch with the prompt and itself

    @property
    def lengths(self) -> list[int]:
        """Tokens of each branch."""
        return [last - first for first, last in pairwise(self.edges)]


def branch_products(prompt: int, lengths: Sequence[int]) -> float | None:
    """Products of a tree's tokens with each other where its branches are attended to by themselves; None where they are not.

    prompt: tokens that all sequences begin with; lengths: tokens of each branch.
    """
    size, longest = prompt + sum(lengths), max(lengths, default=0)
    keys = len(lengths) * (prompt + longest)
    products = prompt * prompt / 2 + longest * keys
    worth = size * size >= LEAST and products <= BRANCHED * size * size and keys <= COPIES * size
    return products if lengths and worth else None


def _branches(ends: Sequence[int], bias: Tensor) -> Branches | None:
    """The branches of a tree; None where they save little. ends: its part of `Padded.ends`, counted from its first token."""
    size = len(ends)
    edges = [next(place for place, end in enumerate(ends) if end < size)]
    while edges[-1] < size:
        edges.append(ends[edges[-1]])
    prompt, lengths = edges[0], [last - first for first, last in pairwise(edges)]
    if branch_products(prompt, lengths) is None:
        return None
    longest = max(lengths)
    wide = bias.new_full((len(lengths), 1, longest, prompt + longest), -torch.inf)
    wide[..., :prompt] = 0.0  # also for what pads a shorter branch: nothing would be NaN
    for row, (first, last) in zip(wide, pairwise(edges)):
        row[0, : last - first, prompt : prompt + last - first] = bias[first:last, first:last]
    return Branches(edges, wide)


@dataclass(frozen=True, eq=False)
class Padded:
    """A batch for `engine.forwards`: B sequences in B rows, or packed into N rows (engine/packing.py)."""

    ids: Tensor  # [B, L] int64
    lengths: Tensor  # [B] int64, real tokens
    source: Tensor  # [B, R] int64: index into the flattened [B * L] of the state that predicts the response token
    target: Tensor  # [B, R] int64: the response token; 0 where there is none
    response_mask: Tensor  # [B, R] bool, 1 on response tokens, EOS among them
    last: Tensor  # [B] int64: index into the flattened [B * L] of the last real token
    positions: Tensor | None = None  # packed rows: [N, L] int64
    ends: Tensor | None = None  # packed rows: [N, L] int64: where in its row the tokens end that see this one
    sizes: Tensor | None = None  # one packed row whose trees are attended to one by one: [U] int64, tokens of each

    def to(self, device: torch.device | str) -> "Padded":
        """The same batch on a device."""
        held = (getattr(self, name) for name in self.__dataclass_fields__)
        return Padded(*(None if tensor is None else tensor.to(device) for tensor in held))

    @cached_property
    def bias(self) -> Tensor | None:
        """[N, 1, L, L] fp32 added to the attention scores of packed rows: 0 where a query sees a key, else -inf."""
        if self.ends is None:
            return None
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        query = places[:, None]
        shut = (places > query) | (query >= self.ends[:, None])
        return torch.zeros(shut.shape, device=self.ids.device).masked_fill_(shut, -torch.inf)[:, None]

    @cached_property
    def trees(self) -> tuple[list[int], list[Tensor | None]]:
        """Of trees that are attended to one by one: tokens of each, and `bias` [n, n] of each, None where it is causal."""
        assert self.sizes is not None and self.ends is not None
        sizes, biases, first = self.sizes.tolist(), [], 0
        for size in sizes:
            ends = self.ends[0, first : first + size] - first
            places = torch.arange(size, device=ends.device)
            shut = (places > places[:, None]) | (places[:, None] >= ends)
            chain = bool((ends == size).all())  # one sequence
            biases.append(None if chain else torch.zeros(shut.shape, device=ends.device).masked_fill_(shut, -torch.inf))
            first += size
        return sizes, biases

    @cached_property
    def branches(self) -> list[Branches | None]:
        """Of trees that are attended to one by one: the branches of each, where its attention is to go through them."""
        assert self.ends is not None
        sizes, biases = self.trees
        ends = self.ends[0].split(sizes)
        starts = [0, *accumulate(sizes)]
        return [
            None if bias is None else _branches((own - start).tolist(), bias)
            for own, start, bias in zip(ends, starts, biases)
        ]

    @cached_property
    def blocks(self) -> Any:
        """The mask of `bias` for FlexAttention, which leaves out the blocks in which no query sees a key."""
        if self.ends is None:
            return None
        from torch.nn.attention.flex_attention import create_block_mask

        ends, (rows, width) = self.ends, self.ids.shape
        seen = lambda row, head, query, key: (key <= query) & (query < ends[row, key])
        return create_block_mask(seen, rows, None, width, width, device=str(ends.device))

    @property
    def attention_mask(self) -> Tensor:
        """[B, L] int64, 1 on real tokens, of a batch that is not packed: for models called from outside this package."""
        return (torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]).long()


def collate(
    pairs: Sequence[tuple[Ids, Ids]], *, pad_id: int, learned: Sequence[Sequence[bool] | None] | None = None
) -> Padded:
    """Pad (prompt, response) pairs on the right.

    Args:
        pairs: token ids; a prompt has at least one token (its last state predicts the first response token).
        learned: for each response which of its tokens count, None for all of them.

    Raises:
        StageError: an empty prompt or response.
    """
    for place, (prompt, response) in enumerate(pairs):
        if not len(prompt) or not len(response):
            found = f"{len(prompt)} prompt and {len(response)} response tokens"
            raise StageError(f"sequence {place} has {found}, want some of each")
    rows = len(pairs)
    prompts = np.array([len(p) for p, _ in pairs], dtype=np.int64)
    responses = np.array([len(r) for _, r in pairs], dtype=np.int64)
    lengths = prompts + responses
    width, depth = int(lengths.max()), int(responses.max())
    ids = np.full((rows, width), pad_id, dtype=np.int64)
    target = np.zeros((rows, depth), dtype=np.int64)
    for row, (prompt, response) in enumerate(pairs):
        ids[row, : prompts[row]] = prompt
        ids[row, prompts[row] : lengths[row]] = response
        target[row, : responses[row]] = response
    steps = np.arange(depth)
    mask = steps < responses[:, None]
    if learned is not None:
        for row, marks in enumerate(learned):
            if marks is not None:
                mask[row, : responses[row]] = marks
    source = np.arange(rows)[:, None] * width + np.minimum(prompts[:, None] - 1 + steps, width - 1)
    tensors = (ids, lengths, source, target, mask, np.arange(rows) * width + lengths - 1)
    return Padded(*(torch.from_numpy(np.ascontiguousarray(t)) for t in tensors))


def permutation(seed: int, stream: str, epoch: int, count: int) -> list[int]:
    """The order of an epoch: depends on (seed, stream, epoch, count) and nothing else."""
    words = [seed & 0xFFFFFFFF, epoch, *stream.encode()]
    return [int(i) for i in np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))).permutation(count)]


def micro_batches(groups: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Which rows of a step are computed together: indices into `groups`, rows of similar length side by side.

    Args:
        groups: for each row the lengths of its responses with their prompts; a row stays whole.
        rows: most responses at a time (a single larger row is taken alone); 0 = all at once.
    """
    order = sorted(
        range(len(groups)), key=lambda i: (-max(groups[i]), i)
    )  # longest first: a lack of memory shows at once
    if rows == 0:
        return [order]
    batches: list[list[int]] = []
    held = rows
    for i in order:
        if not batches or held + len(groups[i]) > rows:
            batches.append([])
            held = 0
        batches[-1].append(i)
        held += len(groups[i])
    return batches
