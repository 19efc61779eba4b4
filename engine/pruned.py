"""The Llama body with its last layer computed only where somebody looks.

Keys and values of the last layer are needed at every token; queries, attention and the MLP only at the places that are read:
the states before response tokens, or the last token of each sequence for a reward. The model's own modules do the work.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.batches import Padded

KNOWN = ("LlamaModel", "Qwen2Model")  # bodies of exactly this structure
WORTH = 0.75  # of the tokens: where more are read, the plain forward pass is as cheap


def known(body: Any) -> bool:
    """Whether the body may be computed as it is written out here and in engine/apart.py."""
    return plain(body) and not one_path(body)


def plain(body: Any) -> bool:
    """Whether the body has exactly the structure of a Llama or Qwen2, and every layer sees all before it."""
    return (
        type(body).__name__ in KNOWN
        and type(body).__module__.startswith("transformers.")
        and len(body.layers) == body.config.num_hidden_layers
        and "sliding_attention" not in (getattr(body.config, "layer_types", None) or ())
    )


def keep_to_one_path(model: Any) -> None:
    """From now on compute this model in one way, whatever the batch: all weights in the model's own order, each once.

    ZeRO-3 fetches a layer's weights from all processes when it is called, ZeRO-2 adds up gradients in the order in which they
    come: processes that call layers in another order would exchange the wrong ones, without an error.
    """
    getattr(model, model.base_model_prefix)._one_path = True


def one_path(body: Any) -> bool:
    """Whether this body is to be computed in one way only."""
    return bool(getattr(body, "_one_path", False))


def applies(body: Any, places: int, tokens: int) -> bool:
    """Whether the last layer of this body can be pruned and enough is saved."""
    return known(body) and not (body.training and body.config.attention_dropout) and places <= WORTH * tokens


def mask_for(model: Any, padded: Padded) -> Any:
    """The mask of packed rows in the form that the model's attention takes; padded rows need none."""
    return padded.blocks if model.config._attn_implementation == "flex_attention" else padded.bias


def states_at(body: Any, padded: Padded, places: Tensor) -> Tensor:
    """The body's last hidden states at `places` [N] (indices into the flattened rows): [N, D]."""
    ids = padded.ids
    width = ids.shape[1]
    positions = padded.positions
    if positions is None:
        positions = torch.arange(width, device=ids.device)[None]
    x = body.embed_tokens(ids)
    turn = body.rotary_emb(x, positions)
    mask = mask_for(body, padded)
    for layer in body.layers[:-1]:
        x = layer(x, attention_mask=mask, position_embeddings=turn, position_ids=positions, use_cache=False)
    read, back = places.unique(return_inverse=True)  # responses that begin alike read one state
    row, column = read // width, read % width
    return body.norm(_last_layer(body.layers[-1], x, turn, padded.bias, row, column))[back]


def _last_layer(
    layer: Any, x: Tensor, turn: tuple[Tensor, Tensor], bias: Tensor | None, row: Tensor, column: Tensor
) -> Tensor:
    """One decoder layer at the tokens (row, column), sorted by row: x [B, L, D] -> [U, D]."""
    attention = layer.self_attn
    rows, width = x.shape[:2]
    size = attention.head_dim
    normed = layer.input_layernorm(x)
    cos, sin = (t.expand(rows, -1, -1) for t in turn)
    key = attention.k_proj(normed).view(rows, width, -1, size)
    value = attention.v_proj(normed).view(rows, width, -1, size)
    key = key * cos[:, :, None] + _half_turned(key) * sin[:, :, None]
    query = attention.q_proj(normed[row, column]).view(len(row), -1, size)
    query = query * cos[row, column][:, None] + _half_turned(query) * sin[row, column][:, None]

    counts = row.bincount(minlength=rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    wide = query.new_zeros(rows, int(counts.max()), *query.shape[1:])
    wide = wide.index_put((row, place), query)
    if bias is None:
        seen = torch.where(torch.arange(width, device=row.device) <= column[:, None], 0.0, -torch.inf)
    else:
        seen = bias[row, 0, column]
    mask = x.new_zeros(rows, 1, wide.shape[1], width)
    mask[row, 0, place] = seen.to(x.dtype)
    group = wide.shape[2] // key.shape[2]
    out = functional.scaled_dot_product_attention(
        wide.transpose(1, 2),
        key.transpose(1, 2).repeat_interleave(group, 1),
        value.transpose(1, 2).repeat_interleave(group, 1),
        attn_mask=mask,
        scale=attention.scaling,
    )
    x = x[row, column] + attention.o_proj(out.transpose(1, 2)[row, place].flatten(1))
    found: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return found


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
