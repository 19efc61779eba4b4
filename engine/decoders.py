"""Decoding engines: a prompt is computed once for all rows that share it, then rows advance one token at a time.

Two engines with one face: `LlamaDecoder` (engine/llama.py: Llama and Qwen2, whose rows share their prompt's keys) and
`CacheDecoder` (any Hugging Face causal LM through its own forward). Letters: U prompts, B rows, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.llama import LlamaDecoder, suits


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
    return LlamaDecoder(model) if suits(model) else CacheDecoder(model)


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
