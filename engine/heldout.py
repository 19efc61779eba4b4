"""What a model makes of held-out documents: nats of each, and sums over many as nats a token and bits a byte."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engine.batches import collate, micro_batches
from engine.corpus import Corpus
from engine.errors import StageError
from engine.examples import Item
from engine.forwards import logps
from engine.tables import read_table
from engine.template import Chat

COLUMNS = {"token_ids": pa.list_(pa.int32()), "bytes": pa.int64()}


@dataclass(frozen=True)
class Document:
    """A held-out document as token ids [n] int32, and the bytes of its text."""

    id: str
    ids: np.ndarray
    bytes: int


def documents(corpus: Corpus, limit: int = 0) -> list[Document]:
    """The held-out documents of a corpus, the first `limit` if that is not 0.

    Raises:
        StageError: there are none.
    """
    path = corpus.folder / "held_out.parquet"
    rows = islice(read_table(path), limit or None) if path.is_file() else ()
    found = [Document(row["id"], np.array(row["token_ids"], dtype=np.int32), int(row["bytes"])) for row in rows]
    if not found:
        raise StageError(
            f"{corpus.label}: no held-out documents, so nothing to measure on; gather it with held_out > 0"
        )
    return found


def windows(chat: Chat, document: Document, length: int) -> list[Item]:
    """A document cut into windows: every token is predicted once, from the tokens of its window and the one before it.

    The first token is predicted from BOS (from EOS where there is no BOS, as in the stream); EOS is not predicted, for it is
    no part of the text.
    """
    bos = chat.tokenizer.bos_token_id
    ids = np.concatenate([np.array([chat.eos_id if bos is None else bos], dtype=np.int32), document.ids])
    starts = range(0, len(document.ids), length)
    return [Item(ids[s : s + 1], (ids[s + 1 : s + 1 + length],), (None,), (0.0,), key=document.id) for s in starts]


def nats(model: Any, chat: Chat, found: Sequence[Document], *, length: int, rows: int, device: str) -> list[np.ndarray]:
    """Negative log-likelihood of every document's windows: for each document [number of windows] fp64, in nats.

    rows: most windows at a time.
    """
    cut = [windows(chat, document, length) for document in found]
    items = [item for pieces in cut for item in pieces]
    every = np.empty(len(items))
    with torch.inference_mode():
        for part in micro_batches([item.lengths for item in items], max(1, rows)):
            padded = collate([items[i].pairs()[0] for i in part], pad_id=chat.pad_id).to(device)
            every[part] = -logps(model, padded).double().sum(1).cpu().numpy()
    return np.split(every, np.cumsum([len(pieces) for pieces in cut])[:-1])


def summarise(total: float, tokens: int, size: int) -> dict[str, float]:
    """{nats a token, bits a byte} of text with so many nats, tokens and bytes."""
    return {"nats": total / tokens, "bits": total / math.log(2) / size}
