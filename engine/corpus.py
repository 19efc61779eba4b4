"""A packed corpus: one stream of token ids in safetensors shards, its held-out documents, and a card that says what it is.

The stream is BOS document EOS BOS document EOS ..; sequences are cut out of it at reading, so that one corpus serves every
sequence length. At its end it begins again, in the same order.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engine.errors import StageError
from engine.examples import Item
from engine.template import Chat

CARD = "pack.json"


def vocabulary(chat: Chat) -> str:
    """Digest of the tokenizer and its BOS and EOS: equal if and only if documents become the same ids. No template in it."""
    backend = json.loads(chat.tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation", None)
    backend.pop("padding", None)
    parts = [backend, chat.tokenizer.bos_token_id, chat.eos_id]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encode(chat: Chat, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of whole texts, without BOS and EOS; a special token's name in a text stays text."""
    backend = chat.tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_truncation()  # a tokenizer may come with a limit, which would silently drop the rest of a document
    backend.no_padding()
    return [np.array(found.ids, dtype=np.int32) for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def id_type(chat: Chat) -> type[np.integer[Any]]:
    """The smallest type that holds every id."""
    return np.uint16 if len(chat.tokenizer) <= 1 << 16 else np.int32


def write_shards(
    out: Path, pieces: Iterable[np.ndarray], size: int, kind: type[np.integer[Any]]
) -> tuple[list[int], str]:
    """Write a stream of ids as shards of `size` tokens; returns the shards' sizes and the digest of the ids (as int32)."""
    sizes: list[int] = []
    total = hashlib.sha256()
    held = np.empty(size, dtype=kind)
    filled = 0

    def flush() -> None:
        save_file({"ids": held[:filled]}, out / _shard(len(sizes)))
        total.update(held[:filled].astype("<i4").tobytes())
        sizes.append(filled)

    for piece in pieces:
        done = 0
        while done < len(piece):
            take = min(size - filled, len(piece) - done)
            held[filled : filled + take] = piece[done : done + take]
            filled, done = filled + take, done + take
            if filled == size:
                flush()
                filled = 0
    if filled:
        flush()
    return sizes, total.hexdigest()


def write_card(out: Path, **card: Any) -> None:
    """Write what is to be known of a corpus without reading it."""
    (out / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Corpus:
    """A corpus that is open for reading; a sequence is read when asked for, nothing is held."""

    folder: Path
    label: str  # for messages
    card: dict[str, Any]
    files: tuple[Any, ...]  # open safetensors

    @property
    def tokens(self) -> int:
        """Tokens of the stream before it begins again."""
        return int(self.card["tokens"])

    @property
    def digest(self) -> str:
        """Names the stream: tokenizer, ids and their order."""
        return str(self.card["digest"])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.card["shards"])

    def span(self, first: int, last: int) -> np.ndarray:
        """Ids first .. last - 1 of the endless stream, [last - first] int32."""
        pieces = []
        while first < last:
            place = first % self.tokens
            shard = int(np.searchsorted(self._ends, place, side="right"))
            begin = int(self._ends[shard]) - self.card["shards"][shard]
            take = min(last - first, int(self._ends[shard]) - place)
            pieces.append(self.files[shard].get_slice("ids")[place - begin : place - begin + take])
            first += take
        return np.concatenate(pieces).astype(np.int32)

    def item(self, first: int, length: int) -> Item:
        """The sequence from token `first` on: that token as the prompt, the next `length` to be predicted."""
        ids = self.span(first, first + length + 1)
        return Item(ids[:1], (ids[1:],), (None,), (0.0,), key=f"{self.label} from token {first}")


def open_corpus(folder: Path, label: str, stack: ExitStack) -> Corpus:
    """Open a corpus's shards; `stack` closes them.

    Raises:
        StageError: not a corpus, or a shard is missing or has another size than the card says.
    """
    path = folder / CARD
    if not path.is_file():
        raise StageError(f"{label}: no {CARD} in {folder.name}, so it is not a packed corpus; pack the documents first")
    card = json.loads(path.read_text())
    files = []
    for number, size in enumerate(card["shards"]):
        try:
            file = stack.enter_context(safe_open(folder / _shard(number), framework="numpy"))
            found = file.get_slice("ids").get_shape()
        except (OSError, SafetensorError) as error:
            raise StageError(
                f"{label}: shard {_shard(number)} cannot be read ({error}); pack the documents again"
            ) from None
        if found != [size]:
            raise StageError(f"{label}: shard {_shard(number)} has {found} ids, {path.name} says {size}; pack it again")
        files.append(file)
    return Corpus(folder, label, card, tuple(files))


def check_vocabulary(chat: Chat, corpus: Corpus) -> None:
    """Raise StageError unless the corpus was packed by the tokenizer of the model."""
    found, wanted = corpus.card["vocabulary"], vocabulary(chat)
    if found != wanted:
        raise StageError(
            f"{corpus.label}: packed with tokenizer {found[:12]}, the model reads with {wanted[:12]}; its ids mean other text. "
            "Pack the documents with this model's tokenizer"
        )


def _shard(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def batches(rows: Iterable[dict[str, Any]], chars: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups of about so many characters of text, one row at least."""
    held: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row["text"])
        if size >= chars:
            yield held
            held, size = [], 0
    if held:
        yield held
