"""Sampling: K responses a prompt, exact at any temperature, the same for any batch.

Token t of response k of a prompt draws its number from a counter keyed (seed, stream, prompt id, k, t); nothing is drawn from a
generator, so batch size, order and restarts do not matter (METHODS 0.7). No top-k, no top-p, no penalties (METHODS 0.6).
"""

import contextlib
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.decoders import Decoder, decoder_for
from engine.errors import NotFinite, StageError

Key = tuple[str, int]
BLOCK = 64  # width of the first level of the inverse distribution function
REFILL = 0.25  # share of free rows from which waiting prompts are started
SWEEP = 0.25  # share of ended rows from which it is worth the copy to drop them


@dataclass(frozen=True)
class Generated:
    """One response. `token_ids` holds the EOS if there was one; `logps` are at the sampling temperature (greedy: at 1)."""

    token_ids: list[int]
    finish: str  # "eos" or "length"
    logps: list[float]


@dataclass(frozen=True)
class _Group:
    """Rows that share a prompt: their places in the caller's list."""

    prompt: Sequence[int]
    places: list[int]


def generate(
    model: Any,
    chat: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Key],
    *,
    seed: int,
    stream: str,
    temperature: float,
    max_new_tokens: int,
    rows: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """One response to each prompt, in the order given.

    Args:
        model: a causal LM.
        chat: has `eos_id`.
        prompts: token ids of each prompt; equal prompts are computed once.
        keys: (prompt id, k) of each, the name of its random stream; no two equal.
        seed, stream: the run's seed and the stage, the rest of that name.
        temperature: 0 is greedy.
        rows: responses in flight.
        progress: called with (responses done, responses in all).

    Raises:
        StageError: keys that repeat, an empty prompt, a prompt that leaves the model no room, log-probs that are not finite.
    """
    _check(model, prompts, keys, max_new_tokens)
    if not prompts:
        return []
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _dense(model.config):
            draw = lambda places: uniforms(seed, stream, [keys[p] for p in places], max_new_tokens)
            flight = _Flight(decoder_for(model), draw, chat.eos_id, temperature, max_new_tokens, rows)
            found: dict[int, Generated] = {}
            for place, response in flight.run(_queue(prompts, rows)):
                found[place] = response
                if progress:
                    progress(len(found), len(prompts))
    finally:
        model.train(training)
    return [found[place] for place in range(len(prompts))]


@contextlib.contextmanager
def _dense(config: Any) -> Iterator[None]:
    """Inside, the model attends by SDPA: FlexAttention's blocks do not fit rows of one token."""
    was = getattr(config, "_attn_implementation", None)
    if was != "flex_attention":
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = was


def uniforms(seed: int, stream: str, keys: Sequence[Key], count: int) -> np.ndarray:
    """Numbers in [0, 1) for each key and token: [len(keys), count] float64, 40 bits each.

    A key's 64-bit state is a hash of its name; the numbers are splitmix64 of it (Steele, Lea, Flood 2014).
    """
    names = (f"{seed}\x1f{stream}\x1f{name}\x1f{k}".encode() for name, k in keys)
    states = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names]
    base = np.array(states, dtype=np.uint64)[:, None]
    z = base + np.arange(1, count + 1, dtype=np.uint64)[None] * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(24)).astype(np.float64) * 2.0**-40


def pick(logits: Tensor, numbers: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens by inverse distribution function: logits [B, V] fp32 (overwritten), numbers [B] fp64 -> tokens [B], log-probs [B].

    Two levels (blocks of tokens, then inside the block), so that the running sum is not taken over the whole vocabulary.
    A token of probability zero is never returned.
    """
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    weights = (logits if temperature == 1 else logits.div_(temperature)).softmax(-1)
    size = weights.shape[1]
    whole = size // BLOCK * BLOCK
    sums = (
        weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1, dtype=torch.float64) if whole else weights[:, :0].double()
    )
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, dtype=torch.float64, keepdim=True)], 1)
    edges = _running(sums)
    total = edges[:, -1]
    target = numbers * total
    block = (edges <= target[:, None]).sum(-1).clamp_(max=sums.shape[1] - 1)[:, None]
    columns = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    inside = weights.gather(1, columns.clamp(max=size - 1)).double().masked_fill_(columns >= size, 0.0)
    steps = _running(inside)
    # Rounding may put the rest at the block's end or beyond: then the last token with weight is the one.
    rest = (target[:, None] - edges.gather(1, block) + sums.gather(1, block)).clamp_(min=0.0)
    rest = torch.minimum(rest, torch.nextafter(steps[:, -1:], torch.zeros_like(rest)))
    place = (steps <= rest).sum(-1, keepdim=True).clamp_(max=BLOCK - 1)
    return columns.gather(1, place)[:, 0], (inside.gather(1, place)[:, 0].log() - total.log()).float()


def _running(values: Tensor) -> Tensor:
    """Running sums along the last dimension. CUDA has no deterministic scan of floats: there they are a product."""
    if values.device.type == "cpu":
        return values.cumsum(-1)
    count = values.shape[-1]
    return values @ values.new_ones(count, count).triu()


def _check(model: Any, prompts: Sequence[Sequence[int]], keys: Sequence[Key], max_new_tokens: int) -> None:
    if len(keys) != len(prompts) or len(set(keys)) != len(keys):
        raise StageError(
            f"{len(prompts)} prompts need as many different keys, found {len(set(keys))} of {len(keys)} different"
        )
    longest = max((len(p) for p in prompts), default=0)
    if any(len(p) == 0 for p in prompts):
        raise StageError("a prompt without tokens cannot be answered; the template must give at least one")
    room = getattr(model.config, "max_position_embeddings", None)
    if room and longest + max_new_tokens > room:
        raise StageError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones need {longest + max_new_tokens} positions, "
            f"the model has {room}; "
            "lower limits.prompt_tokens or limits.response_tokens"
        )


def _queue(prompts: Sequence[Sequence[int]], rows: int) -> deque[_Group]:
    """Groups of at most `rows` rows of one prompt, longest prompts first: a lack of memory shows at once."""
    members: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        members.setdefault(tuple(prompt), []).append(place)
    order = sorted(members, key=len, reverse=True)  # stable: first come, first served
    return deque(_Group(p, members[p][i : i + rows]) for p in order for i in range(0, len(members[p]), rows))


class _Flight:
    """Rows in flight, replaced in groups as they end. `tokens` and the like have a row for each and a spare last column."""

    def __init__(
        self,
        decoder: Decoder,
        draw: Callable[[list[int]], np.ndarray],
        eos: int,
        temperature: float,
        limit: int,
        rows: int,
    ) -> None:
        self.decoder, self.draw, self.eos, self.temperature = decoder, draw, eos, temperature
        self.limit, self.rows = limit, rows

    def run(self, queue: deque[_Group]) -> Iterator[tuple[int, Generated]]:
        """All groups to their end: (place, response), as they end."""
        self.places: list[int] = []
        while queue or self.places:
            if queue and (
                not self.places or (self.decoder.refills and self.rows - len(self.places) >= self.rows * REFILL)
            ):
                self._admit(queue)
            token = self._take()
            open_rows = int(self.open.sum())
            ended = len(self.places) - open_rows
            wanted = bool(queue) and self.decoder.refills and self.rows - open_rows >= self.rows * REFILL
            if ended and (wanted or open_rows == 0 or ended >= len(self.places) * SWEEP):
                yield from self._sweep()
                token = token[self.kept]
            if self.places:
                self.logits = self.decoder.step(token)

    def _admit(self, queue: deque[_Group]) -> None:
        """Start as many groups as there is room for."""
        taken: list[_Group] = []
        room = self.rows - len(self.places)
        while queue and (len(queue[0].places) <= room or not (taken or self.places)):
            taken.append(queue.popleft())
            room -= len(taken[-1].places)
        if not taken:
            return
        groups = torch.tensor([i for i, group in enumerate(taken) for _ in group.places])
        places = [place for group in taken for place in group.places]
        logits = self.decoder.start([group.prompt for group in taken], groups, self.limit)
        logits = logits[groups.to(logits.device)]
        count, device = len(places), logits.device
        fresh = {
            "logits": logits,
            "draws": torch.from_numpy(np.pad(self.draw(places), ((0, 0), (0, 1)))).to(device),
            "tokens": torch.full((count, self.limit + 1), self.eos, dtype=torch.long, device=device),
            "logps": torch.zeros(count, self.limit + 1, device=device),
            "ages": torch.zeros(count, dtype=torch.long, device=device),
            "open": torch.ones(count, dtype=torch.bool, device=device),
        }
        for name, rows in fresh.items():
            setattr(self, name, torch.cat([getattr(self, name), rows]) if self.places else rows)
        self.places = self.places + places

    def _take(self) -> Tensor:
        """Draw each row's next token; rows that have ended write into the spare column."""
        row = torch.arange(len(self.places), device=self.logits.device)
        column = torch.where(self.open, self.ages, self.limit)
        token, logp = pick(self.logits, self.draws[row, column], self.temperature)
        self.tokens[row, column] = token
        self.logps[row, column] = logp
        self.ages += self.open
        self.open &= (token != self.eos) & (self.ages < self.limit)
        return token

    def _sweep(self) -> Iterator[tuple[int, Generated]]:
        """Hand over the rows that have ended and go on with the others."""
        done = (~self.open).nonzero()[:, 0]
        self.kept = self.open.nonzero()[:, 0]
        places = [self.places[i] for i in done.tolist()]
        for place, ids, values, length in zip(
            places, self.tokens[done].tolist(), self.logps[done].tolist(), self.ages[done].tolist()
        ):
            if not all(math.isfinite(v) for v in values[:length]):
                raise NotFinite(
                    "the policy gave log-probabilities that are not finite; its weights or logits hold NaN or infinity"
                )
            yield place, Generated(ids[:length], "eos" if ids[length - 1] == self.eos else "length", values[:length])
        self.decoder.keep(self.kept)
        self.places = [self.places[i] for i in self.kept.tolist()]
        for name in ("draws", "tokens", "logps", "ages", "open"):
            setattr(self, name, getattr(self, name)[self.kept])
