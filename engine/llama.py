"""Llamas and Qwen2s decoded in plain tensor code: the prompt's keys are read once for all its rows.

A row's own tokens lie in a preallocated cache; the two attention parts are merged by their log-normalisers. Equal to the
model's own forward up to float noise. Letters: U prompts, B rows, n tokens, P prompt tokens, H query heads, N key/value
heads, G = H / N, D head width, d model width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine import pruned
from engine.caches import attend, cache_for, merge
from engine.folding import Folded, Head, Layer, Norm, Own, folds

# Keys that the fused attention on CPU takes at a time; the rest of a length that is no multiple costs up to ten times as much
# (13 masked keys of 128 heads of width 8: 1.9 ms, 16 keys: 0.14 ms).
VECTOR = 16
CLASSES = ("LlamaForCausalLM", "Qwen2ForCausalLM")


def suits(model: Any) -> bool:
    """Whether the model is what LlamaDecoder knows: unwrapped, unhooked, with one of the static rotary embeddings."""
    if type(model).__name__ not in CLASSES or not pruned.plain(model.model):
        return False
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and model.config.hidden_act in ("silu", "swish")
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


class LlamaDecoder:
    """See decoders.Decoder."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.rotary = model.model.rotary_emb
        self.embedding = model.model.embed_tokens.weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.layers, self._logits = self._folded(model) if folds(model) else self._own(model)
        # On a CPU the work grows with the rows, and a row beside older ones attends to their slots too: replacing rows one by
        # one took 12 % longer there than running batches to their end. Where a step costs the same for any rows it pays.
        self.refills = self.device.type != "cpu"
        self._clear()

    def _folded(self, model: Any) -> tuple[list[Layer], Callable[[Tensor], Tensor]]:
        """Layers, and what makes logits [n, V] fp32 of the stream [n, d]."""
        norm = Norm(model)
        layers = [Folded(layer, norm, self.heads + self.kv, self.width) for layer in model.model.layers]
        return layers, Head(model, norm)  # type: ignore[return-value]

    def _own(self, model: Any) -> tuple[list[Layer], Callable[[Tensor], Tensor]]:
        """The same without copies."""
        layers = [Own(layer, self.width) for layer in model.model.layers]
        return layers, lambda x: model.lm_head(model.model.norm(x)).float()  # type: ignore[return-value]

    def _clear(self) -> None:
        self.prompts: list[tuple[Tensor, Tensor]] = []  # keys and values of the prompts [U, N, P, D], layer by layer
        self.lengths = self.groups = self.ages = torch.zeros(0, dtype=torch.long, device=self.device)
        self.cache = cache_for(len(self.layers), self.kv, self.heads // self.kv, self.width, self.embedding)

    def _split(self, mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mixed [n, ..] -> rotated queries [n, H, D] and keys [n, N, D], values [n, N, D]; cos and sin [n, 1, D]."""
        count, turned = self.heads + self.kv, (self.heads + self.kv) * self.width
        pair = mixed[:, : 2 * turned].view(-1, 2, count, self.width)
        rotated = torch.addcmul(pair[:, 0] * cos, pair[:, 1], sin)
        return rotated[:, : self.heads], rotated[:, self.heads :], mixed[:, 2 * turned :].view(-1, self.kv, self.width)

    def start(self, prompts: Sequence[Sequence[int]], groups: Tensor, limit: int) -> Tensor:
        """See Decoder. Tokens lie end to end; only attention pads them, on the right: causal attention then needs no mask.
        The last layer is computed at each prompt's last token alone."""
        sizes = torch.tensor([len(p) for p in prompts])
        longest = _whole(sizes)
        ids = torch.cat([torch.as_tensor(p) for p in prompts]).to(self.device)
        starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        places = torch.arange(len(ids)) - starts  # in the prompt
        padded = (torch.repeat_interleave(torch.arange(len(prompts)), sizes) * longest + places).to(self.device)
        places, lengths = places.to(self.device), sizes.to(self.device)
        cos, sin = self._angles(longest + limit)
        angles = [angle[places][:, None] for angle in (cos, sin)]
        x, found = self.embedding[ids], []
        for number, layer in enumerate(self.layers):
            query, key, value = self._split(layer.across(x), *angles)
            keys, values = (self._laid(part, padded, len(prompts), longest) for part in (key, value))
            found.append((keys, values))
            if number + 1 < len(self.layers):
                every = [self._for_queries(part) for part in (keys, values)]
                mixed = functional.scaled_dot_product_attention(
                    self._laid(query, padded, len(prompts), longest), *every, is_causal=True, scale=1.0,
                    enable_gqa=self.heads != every[0].shape[1],
                )  # fmt: skip
                x = layer.finish(x, mixed.transpose(1, 2).reshape(-1, self.heads * self.width)[padded])
        last = lengths.cumsum(0) - 1
        seen = query[last].view(len(prompts), self.kv, -1, self.width)
        mixed, _ = attend(seen, *found[-1], self._beyond(lengths, longest))
        logits = self._logits(self.layers[-1].finish(x[last], mixed.reshape(len(prompts), -1)))
        groups = groups.to(self.device) + len(self.lengths)
        self.prompts = [_stack(old, new) for old, new in zip(self.prompts, found)] if self.prompts else found
        self.lengths = torch.cat([self.lengths, lengths])
        self.ages = torch.cat([self.ages, torch.zeros_like(groups)])
        self.cache.add(len(groups))
        self._seat(torch.cat([self.groups, groups]))
        return logits

    def _for_queries(self, part: Tensor) -> Tensor:
        """Keys or values [U, N, P, D], on a GPU one for each query head: its kernel for fp32 that needs no P x P scores takes
        no shared ones."""
        return part if self.device.type == "cpu" else part.repeat_interleave(self.heads // self.kv, 1)

    def _laid(self, part: Tensor, padded: Tensor, prompts: int, longest: int) -> Tensor:
        """Heads [n, heads, D] of tokens that lie end to end, a row a prompt: [U, heads, P, D], zeros beyond its end."""
        rows = part.new_zeros(prompts * longest, *part.shape[1:])
        rows[padded] = part
        return rows.view(prompts, longest, *part.shape[1:]).transpose(1, 2).contiguous()

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
        self.bias = self._beyond(self.lengths, longest)
        self.groups = groups
        self.seats = int(sizes.max())
        starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        rows = torch.arange(len(groups), device=self.device)
        self.seat_of_row = groups * self.seats + rows - starts
        self.full = self.seats * len(alive) == len(groups)
        self.row_of_seat = torch.zeros(len(alive) * self.seats, dtype=torch.long, device=self.device)
        self.row_of_seat[self.seat_of_row] = rows

    def _beyond(self, lengths: Tensor, longest: int) -> Tensor | None:
        """What shuts the places beyond each prompt's end out: [U, 1, 1, P]; None where there are none."""
        if int(lengths.min()) == longest:
            return None
        shut = torch.arange(longest, device=self.device)[None] >= lengths[:, None]
        return self.embedding.new_zeros(shut.shape).masked_fill_(shut, -math.inf)[:, None, None]

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
            mixed = layer.down(x)
            pair = mixed[: 2 * count * self.width].view(2, count, self.width, rows)
            rotated = torch.addcmul(pair[0] * cos, pair[1], sin)
            query = rotated[: self.heads].view(split)
            self.cache.write(
                number, rotated[self.heads :], mixed[2 * count * self.width :].view(self.kv, self.width, rows)
            )
            merged = merge(self._prompt_part(query, number), self.cache.attend(number, query))
            x = layer.finish(x, merged.reshape(-1, rows).t())
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
