"""Decoding engines: a prompt is computed once for all rows that share it, then rows advance one token at a time.

Two engines with one face: `LlamaDecoder` (plain tensor code for the Llama architecture, several times faster on small
models) and `CacheDecoder` (any Hugging Face causal LM through its own forward). Letters: U prompts, B rows, P prompt
tokens, S response tokens so far, H query heads, N key/value heads, G = H / N, D head width, V vocabulary.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.adapters import weight_of
from engine.caches import attend, cache_for, merge

# Above this many parameters the second copy of the weights that LlamaDecoder makes costs more than it gains.
LARGEST_COPY = 400_000_000
# Keys that the fused attention on CPU takes at a time; the rest of a length that is no multiple costs up to ten times as much
# (13 masked keys of 128 heads of width 8: 1.9 ms, 16 keys: 0.14 ms).
VECTOR = 16


class Decoder(Protocol):
    """Rows in flight. Each row belongs to one prompt."""

    refills: bool  # whether `start` may be called while rows are in flight

    def start(self, prompts: Sequence[Sequence[int]], groups: Tensor, limit: int) -> Tensor:
        """Compute prompts and take up their rows, after those in flight.

        prompts: U token lists; groups: [B] prompt index of each row, ascending; limit: most tokens a row will take.
        Returns [U, V] fp32 logits of the first response token.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token to each row ([B]); returns [B, V] fp32 logits of the next."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only ([B'] ascending indices); with none, the decoder is as new."""


def decoder_for(model: Any) -> Decoder:
    """The fastest engine that is exact for this model."""
    return LlamaDecoder(model) if is_plain_llama(model) else CacheDecoder(model)


def is_plain_llama(model: Any) -> bool:
    """Whether the model is what LlamaDecoder knows: an unwrapped, unhooked Llama with one of the static rotary embeddings."""
    if type(model).__name__ != "LlamaForCausalLM" or not type(model).__module__.startswith("transformers."):
        return False
    rope = getattr(model.config, "rope_parameters", None) or {}
    plain = (torch.nn.Linear, torch.nn.Embedding)
    leaves = [m for m in model.modules() if isinstance(m, plain)]
    return (
        rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and model.config.hidden_act in ("silu", "swish")
        and not model.config.attention_bias
        and not model.config.mlp_bias
        and all(type(m) in plain for m in leaves)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        and sum(p.numel() for p in model.parameters()) <= LARGEST_COPY
    )


class LlamaDecoder:
    """Llama in plain tensor code: norms folded into the matrices, rotary embedding as a second projection, shared prompt cache.

    The prompt's keys are read once for all its rows; a row's own tokens lie in a preallocated cache; the two attention parts
    are merged by their log-normalisers. Equal to the model's own forward up to float noise.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.root = math.sqrt(config.hidden_size)
        self.floor = torch.tensor(math.sqrt(config.rms_norm_eps) * self.root, device=model.device)
        self.rotary = model.model.rotary_emb
        self.embedding = model.model.embed_tokens.weight.detach()
        self.layers = [self._weights(layer) for layer in model.model.layers]
        self.head = (model.lm_head.weight * (model.model.norm.weight * self.root)).detach()
        self.device, self.dtype = self.head.device, self.head.dtype
        # On a CPU the work grows with the rows, and a row beside older ones attends to their slots too: replacing rows one by
        # one took 12 % longer there than running batches to their end. Where a step costs the same for any rows it pays.
        self.refills = self.device.type != "cpu"
        self._clear()

    def _clear(self) -> None:
        self.prompts: list[tuple[Tensor, Tensor]] = []  # keys and values of the prompts [U, N, P, D], layer by layer
        self.lengths = self.groups = self.ages = torch.zeros(0, dtype=torch.long, device=self.device)
        self.cache = cache_for(len(self.layers), self.kv, self.heads // self.kv, self.width, self.head)

    def _weights(self, layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One layer's matrices: [q, k, rotated q, rotated k, v]; the other way round: output, [gate, up], down."""
        attention, mlp = layer.self_attn, layer.mlp
        scaled = weight_of(attention.q_proj) / math.sqrt(self.width)
        straight = torch.cat([scaled, weight_of(attention.k_proj)])
        halves = straight.view(self.heads + self.kv, 2, self.width // 2, -1)
        turned = torch.stack([-halves[:, 1], halves[:, 0]], 1).reshape(straight.shape)
        first = torch.cat([straight, turned, weight_of(attention.v_proj)])
        first = first * (layer.input_layernorm.weight * self.root)
        gated = torch.cat([weight_of(mlp.gate_proj), weight_of(mlp.up_proj)])
        gated = gated * (layer.post_attention_layernorm.weight * self.root)
        found = (first, weight_of(attention.o_proj).t(), gated.t(), weight_of(mlp.down_proj).t())
        return tuple(matrix.detach() for matrix in found)  # type: ignore[return-value]

    def _normed(self, x: Tensor) -> Tensor:
        """RMS norm without its weight and without the root of the width, which are in the matrices that follow."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self.floor)).to(self.dtype)

    def _project(self, x: Tensor, matrix: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [n, d] -> rotated queries [n, H, D] and keys [n, N, D], values [n, N, D]; cos and sin [n, 1, D]."""
        mixed = functional.linear(self._normed(x), matrix)
        count, turned = self.heads + self.kv, (self.heads + self.kv) * self.width
        pair = mixed[:, : 2 * turned].view(-1, 2, count, self.width)
        rotated = torch.addcmul(pair[:, 0] * cos, pair[:, 1], sin)
        return rotated[:, : self.heads], rotated[:, self.heads :], mixed[:, 2 * turned :].view(-1, self.kv, self.width)

    def _finish(self, x: Tensor, mixed: Tensor, layer: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Output projection and the gated layer, both added to the stream: x [n, d], mixed [n, H * D] -> [n, d]."""
        x = torch.addmm(x, mixed, layer[1])
        both = self._normed(x) @ layer[2]
        half = both.shape[1] // 2
        return torch.addmm(x, functional.silu(both[:, :half]).mul_(both[:, half:]), layer[3])

    def _logits(self, x: Tensor) -> Tensor:
        return functional.linear(self._normed(x), self.head).float()

    def start(self, prompts: Sequence[Sequence[int]], groups: Tensor, limit: int) -> Tensor:
        """See Decoder. Padding is on the right here: causal attention then needs no mask, and positions are the columns."""
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        longest = _whole(lengths)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.as_tensor(prompt)
        cos, sin = self._angles(longest + limit)
        shape = (len(prompts), longest)
        x = self.embedding[ids.to(self.device).view(-1)]
        angles = [angle[:longest].repeat(len(prompts), 1)[:, None] for angle in (cos, sin)]
        found = []
        for layer in self.layers:
            parts = self._project(x, layer[0], *angles)
            query, key, value = (part.view(*shape, -1, self.width).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1.0, enable_gqa=self.heads != self.kv
            )
            x = self._finish(x, mixed.transpose(1, 2).reshape(len(x), -1), layer)
            found.append((key.contiguous(), value.contiguous()))
        groups = groups.to(self.device) + len(self.lengths)
        self.prompts = [_stack(old, new) for old, new in zip(self.prompts, found)] if self.prompts else found
        self.lengths = torch.cat([self.lengths, lengths])
        self.ages = torch.cat([self.ages, torch.zeros_like(groups)])
        self.cache.add(len(groups))
        self._seat(torch.cat([self.groups, groups]))
        return self._logits(x.view(*shape, -1)[torch.arange(len(prompts), device=self.device), lengths - 1])

    def _angles(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least `count` positions, [positions, D] each."""
        if not hasattr(self, "cos") or len(self.cos) < count:
            positions = torch.arange(count, device=self.device)[None]
            cos, sin = self.rotary(torch.empty(0, device=self.device, dtype=self.dtype), positions)
            self.cos, self.sin = cos[0], sin[0]
        return self.cos, self.sin

    def _seat(self, groups: Tensor) -> None:
        """Give each row a seat among its prompt's rows, and forget prompts without rows."""
        alive, groups, sizes = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
        longest = _whole(self.lengths[alive])
        if len(alive) < len(self.lengths):
            self.prompts = [(key[alive, :, :longest], value[alive, :, :longest]) for key, value in self.prompts]
            self.lengths = self.lengths[alive]
        self.bias = None
        if int(self.lengths.min()) < longest:
            padded = torch.arange(longest, device=self.device)[None] >= self.lengths[:, None]
            self.bias = self.head.new_zeros(padded.shape).masked_fill_(padded, -math.inf)[:, None, None]
        self.groups = groups
        self.seats = int(sizes.max())
        starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        rows = torch.arange(len(groups), device=self.device)
        self.seat_of_row = groups * self.seats + rows - starts
        self.full = self.seats * len(alive) == len(groups)
        self.row_of_seat = torch.zeros(len(alive) * self.seats, dtype=torch.long, device=self.device)
        self.row_of_seat[self.seat_of_row] = rows

    def keep(self, rows: Tensor) -> None:
        """See Decoder."""
        if len(rows) == 0:
            self._clear()
            return
        self.cache.keep(rows)
        self.ages = self.ages[rows]
        self._seat(self.groups[rows])

    def _prompt_part(self, query: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Attention of every row to its prompt, whose keys are read once for all its rows.

        query [N, G, D, B] -> ([N, G, D, B], [N, G, B]).
        """
        heads = query.shape[:3]
        by_row = query.permute(3, 0, 1, 2)
        if not self.full:
            by_row = by_row.contiguous()[self.row_of_seat]
        seated = by_row.reshape(-1, self.seats, *heads).transpose(1, 2)  # [U, N, seats, G, D]
        flat = seated.reshape(len(seated), heads[0], -1, heads[2]).contiguous()  # the operator takes no other strides
        out, norm = attend(flat, *self.prompts[layer], self.bias)
        out = out.view(seated.shape).transpose(1, 2).reshape(-1, *heads)
        norm = norm.view(seated.shape[:4]).transpose(1, 2).reshape(-1, *heads[:2])
        if not self.full:
            out, norm = out[self.seat_of_row], norm[self.seat_of_row]
        return out.permute(1, 2, 3, 0), norm.permute(1, 2, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder. Heads are feature-major here ([.., D, B]): the caches want it, and the projection gives it for free."""
        position = (self.lengths[self.groups] + self.ages).clamp_(
            max=len(self.cos) - 1
        )  # ended rows may run on a little
        cos, sin = self.cos[position].t().contiguous(), self.sin[position].t().contiguous()  # [D, B]
        count, rows = self.heads + self.kv, len(tokens)
        split = (self.kv, self.heads // self.kv, self.width, rows)
        x = self.embedding[tokens]
        self.cache.open()
        for number, layer in enumerate(self.layers):
            mixed = layer[0] @ self._normed(x).t()
            pair = mixed[: 2 * count * self.width].view(2, count, self.width, rows)
            rotated = torch.addcmul(pair[0] * cos, pair[1], sin)
            query = rotated[: self.heads].view(split)
            self.cache.write(
                number, rotated[self.heads :], mixed[2 * count * self.width :].view(self.kv, self.width, rows)
            )
            merged = merge(self._prompt_part(query, number), self.cache.attend(number, query))
            x = self._finish(x, merged.reshape(-1, rows).t(), layer)
        self.ages += 1
        return self._logits(x)


def _whole(lengths: Tensor) -> int:
    """The longest length, rounded up to whole vectors of keys."""
    return -(-int(lengths.max()) // VECTOR) * VECTOR


def _stack(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values of more prompts: [U, N, P, D] and [U', N, P', D], the shorter padded on the right."""
    longest = max(old[0].shape[2], new[0].shape[2])
    key, value = (
        torch.cat([functional.pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts])
        for parts in zip(old, new)
    )
    return key, value


class CacheDecoder:
    """Any Hugging Face causal LM: its own forward, left padding, its own key/value cache."""

    refills = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra = {"position_ids": positions} if self.takes_positions else {}
        found = self.model(input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True,
                           logits_to_keep=1, **extra)  # fmt: skip
        self.cache = found.past_key_values
        return found.logits[:, -1].float()

    def start(self, prompts: Sequence[Sequence[int]], groups: Tensor, limit: int) -> Tensor:
        """See Decoder."""
        longest = max(len(p) for p in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self.mask, self.cache = mask.to(self.device), None
        self.position = self.mask.sum(1)
        logits = self._forward(ids.to(self.device), (self.mask.cumsum(1) - 1).clamp(min=0))
        self.keep(groups.to(self.device))
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """See Decoder."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        logits = self._forward(tokens[:, None], self.position[:, None])
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """See Decoder."""
        if len(rows) == 0:
            self.cache = None
            return
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]
