"""A Llama layer as the decoder multiplies by it: as four copied matrices, or through the model's own modules.

Letters: n tokens, H query heads, N key/value heads, D head width, d model width.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.adapters import weight_of

# Up to this many parameters a second copy of the weights is made, with norms folded in and the rotation as a second
# projection: fewer operators, which is what small models wait for.
LARGEST_COPY = 400_000_000
# Words of the vocabulary that a product on a CPU takes at a time: 64 rows of 256 numbers times 8,192 words took 0.73 of the
# time of one product, 16 rows of 192 times 8,000 words 0.58 (one thread).
WORDS = 512


def folds(model: Any) -> bool:
    """Whether the copy is worth its memory, and what can be copied is all that there is."""
    plain = (torch.nn.Linear, torch.nn.Embedding)
    layers = [(layer.self_attn, layer.mlp) for layer in model.model.layers]
    late = [part for a, mlp in layers for part in (a.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    return (
        sum(p.numel() for p in model.parameters()) <= LARGEST_COPY
        and all(type(m) in plain for m in model.modules() if isinstance(m, plain))
        and all(part.bias is None for part in late)
    )


class Layer(Protocol):
    """What a layer does to each token by itself. mixed: [straight queries and keys, the same turned, values]."""

    def across(self, x: Tensor) -> Tensor:
        """Stream [n, d] -> mixed [n, 2 (H + N) D + N D]; queries are scaled."""

    def down(self, x: Tensor) -> Tensor:
        """The same, transposed."""

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection and the gated layer, both added to the stream: x [n, d], attended [n, H * D] -> [n, d]."""


class Norm:
    """RMS norm without its weight and without the root of the width, which are in the matrices that follow."""

    def __init__(self, model: Any) -> None:
        self.root = math.sqrt(model.config.hidden_size)
        self.floor = torch.tensor(math.sqrt(model.config.rms_norm_eps) * self.root, device=model.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self.floor)).to(x.dtype)


class Head:
    """The output layer with the last norm folded in, as a copy."""

    def __init__(self, model: Any, norm: Norm) -> None:
        weight = (model.lm_head.weight * (model.model.norm.weight * norm.root)).detach()
        self.norm, self.size = norm, len(weight)
        words = WORDS if weight.device.type == "cpu" else self.size
        self.parts = [part.t().contiguous() for part in weight.split(words)]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, V] fp32 of the stream [n, d]."""
        states = self.norm(x)
        logits = states.new_empty(len(states), self.size)
        first = 0
        for part in self.parts:
            torch.mm(states, part, out=logits[:, first : first + part.shape[1]])
            first += part.shape[1]
        return logits.float()


class Folded:
    """A layer as four matrices, copied from the model's."""

    def __init__(self, layer: Any, norm: Norm, heads: int, width: int) -> None:
        attention, mlp, self.norm = layer.self_attn, layer.mlp, norm
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        first = self._turned(*(weight_of(part) for part in parts), heads, width)
        self.first = (first * (layer.input_layernorm.weight * norm.root)).detach()
        self.bias = None
        if parts[0].bias is not None:
            self.bias = self._turned(*(part.bias[:, None] for part in parts), heads, width)[:, 0].detach()
        gated = torch.cat([weight_of(mlp.gate_proj), weight_of(mlp.up_proj)])
        gated = gated * (layer.post_attention_layernorm.weight * norm.root)
        rest = (weight_of(attention.o_proj).t(), gated.t(), weight_of(mlp.down_proj).t())
        self.output, self.gated, self.last = (matrix.detach() for matrix in rest)

    @staticmethod
    def _turned(query: Tensor, key: Tensor, value: Tensor, heads: int, width: int) -> Tensor:
        straight = torch.cat([query / math.sqrt(width), key])
        halves = straight.view(heads, 2, width // 2, -1)
        turned = torch.stack([-halves[:, 1], halves[:, 0]], 1).reshape(straight.shape)
        return torch.cat([straight, turned, value])

    def across(self, x: Tensor) -> Tensor:
        """See Layer."""
        return functional.linear(self.norm(x), self.first, self.bias)

    def down(self, x: Tensor) -> Tensor:
        """See Layer."""
        states = self.norm(x).t()
        return self.first @ states if self.bias is None else torch.addmm(self.bias[:, None], self.first, states)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """See Layer."""
        x = torch.addmm(x, attended, self.output)
        both = self.norm(x) @ self.gated
        half = both.shape[1] // 2
        return torch.addmm(x, functional.silu(both[:, :half]).mul_(both[:, half:]), self.last)


class Own:
    """A layer through the model's own modules: no copy of a weight."""

    def __init__(self, layer: Any, width: int) -> None:
        self.layer, self.width = layer, width

    def across(self, x: Tensor) -> Tensor:
        """See Layer."""
        attention, states = self.layer.self_attn, self.layer.input_layernorm(x)
        straight = torch.cat([attention.q_proj(states) / math.sqrt(self.width), attention.k_proj(states)], 1)
        halves = straight.view(len(x), -1, 2, self.width // 2)
        turned = torch.stack([-halves[:, :, 1], halves[:, :, 0]], 2)
        return torch.cat([straight, turned.view(straight.shape), attention.v_proj(states)], 1)

    def down(self, x: Tensor) -> Tensor:
        """See Layer."""
        return self.across(x).t().contiguous()

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """See Layer."""
        x = x + self.layer.self_attn.o_proj(attended)
        return x + self.layer.mlp(self.layer.post_attention_layernorm(x))  # type: ignore[no-any-return]
