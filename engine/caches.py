"""Keys and values of the tokens that rows have taken so far, laid out for the way they are read.

Rows may have begun at different steps. All write at the same slot, the present one; a row's tokens are the slots since it
began, and the slots before are shut out. Letters: C layers, B rows, N key/value heads, G query heads for each, D head width,
S slots.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

SMALL_HEAD = 32  # G * D up to which one multiplication per number is faster than a matrix product per row and head
BLOCK = 1 << 17  # numbers of a product that stay in the processor's cache
ROOM = 32  # slots there are at first


class Cache(Protocol):
    """The tokens of all rows in all layers. Heads are feature-major: the rows are the last dimension."""

    def add(self, rows: int) -> None:
        """Take up so many more rows, after those that there are; they begin at the next slot."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only ([B'] ascending indices)."""

    def open(self) -> None:
        """Begin the next slot."""

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Fill the open slot of each row: key, value [N, D, B]."""

    def attend(self, layer: int, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attention over each row's own tokens: scaled query [N, G, D, B] -> ([N, G, D, B], log-normaliser [N, G, B])."""


def cache_for(layers: int, heads: int, groups: int, width: int, like: Tensor) -> Cache:
    """The layout that suits the model's heads and the device of `like`."""
    small = like.device.type == "cpu" and groups * width <= SMALL_HEAD
    return ColumnCache(layers, heads, width, like) if small else RowCache(layers, heads, width, like)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention with its log-normaliser, so that two parts of a context can be merged.

    query [b, N, q, D] already scaled, key/value [b, N, k, D], bias [b, 1, 1, k] or None -> ([b, N, q, D], [b, N, q]).
    """
    if query.device.type == "cpu":
        # The operator behind scaled_dot_product_attention on CPU; the public function drops the log-normaliser.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias, scale=1.0)
    scores = (query @ key.transpose(2, 3)).float()
    if bias is not None:
        scores = scores + bias.float()
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)


class _Slots:
    """What both layouts share: `data` with its rows and slots at some dimension, the slot each row began at, the bounds.

    Slots [first, now] are in use while one is open.
    """

    rows_at: int  # dimension of `data` that counts rows
    slots_at: int

    def __init__(self, empty: Tensor) -> None:
        self.data = empty
        self.began = torch.zeros(0, dtype=torch.long, device=empty.device)
        self.first, self.now, self.mixed = 0, -1, False

    def add(self, rows: int) -> None:
        """See Cache."""
        shape = list(self.data.shape)
        if len(self.began) == 0:
            shape[self.rows_at], shape[self.slots_at] = rows, ROOM
            self.data, self.first, self.now = self.data.new_empty(shape), 0, -1
        else:
            shape[self.rows_at] = rows
            more = self.data.new_empty(shape)
            more.narrow(self.slots_at, 0, self.now + 1).zero_()  # shut out, but nothing times NaN is NaN
            self.data = torch.cat([self.data, more], self.rows_at)
        self.began = torch.cat([self.began, torch.full((rows,), self.now + 1, device=self.began.device)])
        self._bound()

    def keep(self, rows: Tensor) -> None:
        """See Cache."""
        self.began = self.began[rows]
        used = self.data.narrow(self.slots_at, self.first, self.now + 1 - self.first).index_select(self.rows_at, rows)
        shape = list(self.data.shape)
        shape[self.rows_at] = len(rows)
        self.data = self.data.new_empty(shape)
        self.data.narrow(self.slots_at, self.first, self.now + 1 - self.first).copy_(used)
        self._bound()

    def open(self) -> None:
        """See Cache."""
        self.now += 1
        room = self.data.shape[self.slots_at]
        if self.now < room:
            return
        used = self.data.narrow(self.slots_at, self.first, self.now - self.first)
        shape = list(self.data.shape)
        shape[self.slots_at] = room if 2 * self.first >= room else 2 * room
        fresh = self.data.new_empty(shape)
        fresh.narrow(self.slots_at, 0, self.now - self.first).copy_(used)
        self.data, self.began, self.now, self.first = fresh, self.began - self.first, self.now - self.first, 0
        self._bound()

    def _bound(self) -> None:
        self.layers = [(keys, values) for keys, values in zip(self.data[0], self.data[1])]
        if len(self.began):
            self.first, last = (int(bound) for bound in torch.aminmax(self.began))
            self.mixed = last > self.first

    def _shut(self) -> Tensor:
        """[S, B], true where a slot is from before the row began."""
        return torch.arange(self.first, self.now + 1, device=self.began.device)[:, None] < self.began


class ColumnCache(_Slots):
    """Small heads: [2, C, S, N, D, B], so that every step is a few long vector operations over all rows at once.

    With 256 rows of 4 heads of width 8 and 16 tokens this took 0.2 to 0.3 ms where a matrix product for each row and head,
    of whatever kind, took 0.45 to 0.6.
    """

    rows_at, slots_at = 5, 2

    def __init__(self, layers: int, heads: int, width: int, like: Tensor) -> None:
        super().__init__(like.new_empty(2, layers, 0, heads, width, 0))

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See Cache."""
        keys, values = self.layers[layer]
        keys[self.now] = key
        values[self.now] = value

    def attend(self, layer: int, query: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache. The products are formed in blocks of slots that stay in the processor's cache."""
        keys, values = (part[self.first : self.now + 1] for part in self.layers[layer])
        size = max(1, BLOCK // query.numel())
        blocks = [slice(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
        parts = [(keys[block].unsqueeze(2) * query).sum(3) for block in blocks]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts)  # [S, N, G, B]
        if self.mixed:
            scores.masked_fill_(self._shut()[:, None, None], -math.inf)
        top = scores.amax(0)
        weights = scores.sub_(top).exp_()
        total = weights.sum(0)
        weights = weights.unsqueeze(3)
        out = (values[blocks[0]].unsqueeze(2) * weights[blocks[0]]).sum(0)
        for block in blocks[1:]:
            out += (values[block].unsqueeze(2) * weights[block]).sum(0)
        return out.div_(total.unsqueeze(2)), top.add_(total.log_())


class RowCache(_Slots):
    """Any heads: [2, C, B, N, S, D], read by fused attention."""

    rows_at, slots_at = 2, 4

    def __init__(self, layers: int, heads: int, width: int, like: Tensor) -> None:
        super().__init__(like.new_empty(2, layers, 0, heads, 0, width))

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See Cache."""
        keys, values = self.layers[layer]
        keys[:, :, self.now] = key.permute(2, 0, 1)
        values[:, :, self.now] = value.permute(2, 0, 1)

    def attend(self, layer: int, query: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache."""
        keys, values = (part[:, :, self.first : self.now + 1] for part in self.layers[layer])
        bias = None
        if self.mixed:
            shut = self._shut().t().contiguous()
            bias = query.new_zeros(shut.shape).masked_fill_(shut, -math.inf)[:, None, None]
        out, norm = attend(query.permute(3, 0, 1, 2).contiguous(), keys, values, bias)
        return out.permute(1, 2, 3, 0), norm.permute(1, 2, 0)


def merge(far: tuple[Tensor, Tensor], near: tuple[Tensor, Tensor]) -> Tensor:
    """Two attention parts as one: ([N, G, D, B], [N, G, B]) twice -> [N, G, D, B]."""
    share = torch.sigmoid(far[1] - near[1]).unsqueeze(2).to(far[0].dtype)
    return torch.lerp(near[0], far[0], share)
