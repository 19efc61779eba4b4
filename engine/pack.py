"""Documents -> a packed corpus: tokenised once, written in the order in which every later training reads it."""

import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.continuing import Pack
from engine.batches import permutation
from engine.corpus import batches, encode, id_type, vocabulary, write_card, write_shards
from engine.errors import StageError
from engine.heldout import COLUMNS
from engine.job import Job
from engine.tables import write_table
from engine.template import Chat, load_chat
from storage.rows import read_rows

CHARS = 1 << 20  # of text tokenised at a time


def run(job: Job) -> dict[str, Any]:
    """Write the shards, held_out.parquet and pack.json.

    Raises:
        StageError: no documents, or none with text.
    """
    recipe: Pack = job.recipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads belong to the runtime
    chat, folder = load_chat(job.folder("tokenizer")), job.folder("documents")
    with tempfile.TemporaryDirectory() as scratch:
        spool = Spool(Path(scratch) / "ids", chat)
        for rows in batches(read_rows(folder / "rows.parquet", "Document"), CHARS):
            spool.add([row["text"] for row in rows])
            job.progress(spool.documents, spool.documents + 1, "document")
        if spool.documents == 0:
            raise StageError(f"no documents with text to pack ({spool.empty} empty ones); look at what was gathered")
        count = spool.documents
        order = permutation(recipe.seed, "documents", 0, count) if recipe.order == "shuffled" else list(range(count))
        sizes, digest = write_shards(job.out, spool.stream(order), recipe.shard_tokens, id_type(chat))
    held = _write_held_out(job, chat, folder / "held_out.parquet")
    names = vocabulary(chat)
    numbers = {"documents": count, "tokens": sum(sizes), "bytes": spool.bytes, "empty": spool.empty, "held_out": held}
    write_card(job.out, **numbers, shards=sizes, vocabulary=names, digest=f"{names[:16]}{digest[:16]}")
    job.progress(1, 1, "corpus")
    return {**numbers, "shards": len(sizes), "digest": f"{names[:16]}{digest[:16]}"}


class Spool:
    """Tokenised documents on disk in the order of their coming, so that they can be written in another one."""

    def __init__(self, path: Path, chat: Chat) -> None:
        self._path, self._chat, self._kind = path, chat, id_type(chat)
        self._ends = array("q", [0])
        self.bytes = self.empty = 0
        path.touch()

    @property
    def documents(self) -> int:
        """Documents so far that have text."""
        return len(self._ends) - 1

    def add(self, texts: list[str]) -> None:
        """Tokenise and append; empty texts are counted and left out."""
        whole = [text for text in texts if text]
        self.empty += len(texts) - len(whole)
        with self._path.open("ab") as out:
            for text, ids in zip(whole, encode(self._chat, whole)):
                out.write(ids.astype(self._kind).tobytes())
                self._ends.append(self._ends[-1] + len(ids))
                self.bytes += len(text.encode())

    def stream(self, order: list[int]) -> Iterator[np.ndarray]:
        """The documents in an order, each between BOS (if the tokenizer has one) and EOS."""
        bos = self._chat.tokenizer.bos_token_id
        opening = np.array([] if bos is None else [bos], dtype=self._kind)
        ending = np.array([self._chat.eos_id], dtype=self._kind)
        ids = np.memmap(self._path, dtype=self._kind, mode="r") if self._ends[-1] else np.empty(0, dtype=self._kind)
        for i in order:
            yield np.concatenate([opening, ids[self._ends[i] : self._ends[i + 1]], ending])


def _write_held_out(job: Job, chat: Chat, path: Path) -> int:
    """Tokenise the held-out documents, if there are any, into held_out.parquet; returns how many."""
    if not path.is_file():
        return 0

    def rows() -> Iterator[dict[str, Any]]:
        for group in batches(read_rows(path, "Document"), CHARS):
            group = [row for row in group if row["text"]]
            for row, ids in zip(group, encode(chat, [row["text"] for row in group])):
                yield {**row, "token_ids": ids.tolist(), "bytes": len(row["text"].encode())}

    return write_table(job.out / "held_out.parquet", rows(), COLUMNS, "Document")
