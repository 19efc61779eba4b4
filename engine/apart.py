"""The Llama body on trees that lie end to end: matrices over all tokens at once, attention tree by tree.

Nothing is padded, and no query is compared with a key of another tree. The last layer is computed only where somebody looks
(see engine/pruned.py). The model's own modules do the work. Letters: T tokens of all trees, U places read, n tokens of a tree,
H heads, D head width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from engine.batches import Branches, Padded

Turn = tuple[Tensor, Tensor]  # cosines and sines of the tokens' positions, [T, 1, D] each


def states_at(body: Any, padded: Padded, places: Tensor) -> Tensor:
    """The body's last hidden states at `places` [N] (indices into the one row of tokens): [N, D]."""
    read, back = places.unique(return_inverse=True)  # responses that begin alike read one state
    x = body.embed_tokens(padded.ids)
    cos, sin = (part[0, :, None] for part in body.rotary_emb(x, padded.positions))
    x = x[0]
    for layer in body.layers[:-1]:
        x = _layer(layer, x, (cos, sin), padded)
    return body.norm(_layer(body.layers[-1], x, (cos, sin), padded, read))[back]


def _layer(layer: Any, x: Tensor, turn: Turn, padded: Padded, read: Tensor | None = None) -> Tensor:
    """One decoder layer: x [T, d] -> [T, d], or [U, d] at the ascending tokens `read`."""
    attention = layer.self_attn
    size = attention.head_dim
    normed = layer.input_layernorm(x)
    key = _turned(attention.k_proj(normed).unflatten(-1, (-1, size)), turn)
    value = attention.v_proj(normed).unflatten(-1, (-1, size))
    if read is not None:
        x, normed, turn = x[read], normed[read], (turn[0][read], turn[1][read])
    query = _turned(attention.q_proj(normed).unflatten(-1, (-1, size)), turn)
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    dropout = attention.attention_dropout if attention.training else 0.0
    mixed = _attend(query, key, value, padded, read, attention.scaling, dropout)
    x = x + attention.o_proj(mixed.flatten(1))
    found: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return found


def _attend(
    query: Tensor, key: Tensor, value: Tensor, padded: Padded, read: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """query [T or U, H, D], key and value [T, H, D] -> as query; each tree by itself."""
    sizes, biases = padded.trees
    counts, branches = sizes, padded.branches
    if read is not None:
        branches = [None] * len(sizes)
        stops = torch.tensor(sizes, device=read.device).cumsum(0)
        edges = torch.searchsorted(read, stops)
        counts = edges.diff(prepend=edges.new_zeros(1)).tolist()
        biases = [_rows(bias, some, stop - size, size) for bias, some, stop, size in
                  zip(biases, read.split(counts), stops.tolist(), sizes)]  # fmt: skip
    found = []
    for q, k, v, bias, branched in zip(query.split(counts), key.split(sizes), value.split(sizes), biases, branches):
        if branched is not None:
            found.append(_branched(q, k, v, branched, scale, dropout))
        elif len(q):  # a tree in which nothing is read
            parts = (part.transpose(0, 1)[None] for part in (q, k, v))
            mask = None if bias is None else bias.to(q.dtype)
            found.append(functional.scaled_dot_product_attention(
                *parts, attn_mask=mask, is_causal=bias is None, scale=scale, dropout_p=dropout
            )[0].transpose(0, 1))  # fmt: skip
    return torch.cat(found)


def _branched(query: Tensor, key: Tensor, value: Tensor, tree: Branches, scale: float, dropout: float) -> Tensor:
    """Attention of a tree's prompt to itself, and of each branch to the prompt and itself: [n, H, D] each -> as query."""
    lengths = tree.lengths
    parts = [part.split([tree.edges[0], *lengths]) for part in (query, key, value)]
    heads = (part[0].transpose(0, 1)[None] for part in parts)
    ahead = functional.scaled_dot_product_attention(*heads, is_causal=True, scale=scale, dropout_p=dropout)
    side = [pad_sequence(part[1:], batch_first=True) for part in parts]  # [C, n, H, D]
    for place in (1, 2):
        prompt = parts[place][0].expand(len(lengths), *parts[place][0].shape)
        side[place] = torch.cat([prompt, side[place]], 1)
    mixed = functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in side), attn_mask=tree.bias.to(query.dtype), scale=scale, dropout_p=dropout
    )
    rows = [row[:length] for row, length in zip(mixed.transpose(1, 2), lengths)]
    return torch.cat([ahead[0].transpose(0, 1), *rows])


def _rows(bias: Tensor | None, read: Tensor, first: int, size: int) -> Tensor:
    """The rows of a tree's mask for the tokens `read` of the tree that begins at `first`."""
    places = read - first
    if bias is not None:
        return bias[places]
    seen = torch.arange(size, device=read.device) <= places[:, None]
    return torch.zeros(seen.shape, device=read.device).masked_fill_(~seen, -torch.inf)


def _turned(x: Tensor, turn: Turn) -> Tensor:
    """Rotary embedding: x [T, H, D]."""
    first, second = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-second, first], -1) * turn[1]
