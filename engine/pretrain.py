"""Documents -> a base model: a byte-level BPE of its own, and a Llama trained to predict every token."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from configs.recipes import Pretrain
from engine.batches import permutation
from engine.errors import StageError
from engine.examples import Item
from engine.job import Job
from engine.models import new_llama, save_model
from engine.offline import Fit, fit
from engine.template import Chat, make_chat
from methods import pretrain as next_token
from storage.rows import read_rows

SPECIAL = ("<pad>", "<s>", "</s>")


def run(job: Job) -> dict[str, Any]:
    """Train tokenizer and model and write the model folder.

    Raises:
        StageError: no documents, a vocabulary too small, fewer tokens than one sequence, or what `offline.fit` raises.
    """
    recipe: Pretrain = job.recipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads belong to the runtime
    texts = [row["text"] for row in read_rows(job.folder("documents") / "rows.parquet", "Document")]
    if not texts:
        raise StageError("no documents to pretrain on")
    chat = make_chat(train_tokenizer(texts, recipe.tokenizer.vocab_size), recipe.template)
    packed = Packed(chat, texts, recipe.sequence_length, recipe.seed)
    job.log(f"{len(texts)} documents, {packed.total} tokens, vocabulary {len(chat.tokenizer)}")
    model = new_llama(recipe.architecture, chat, recipe.seed).to(job.runtime.device)
    size = recipe.batch_size
    plan = Fit(
        model=model,
        method=next_token,
        config=next_token.Config(),
        optimizer=recipe.optimizer,
        steps=recipe.steps,
        rows=lambda step: range((step - 1) * size, step * size),
        item=packed.item,
        pad_id=chat.pad_id,
    )
    model, summary = fit(job, plan)
    save_model(model, chat, job.out, "policy")
    return {
        **summary,
        "documents": len(texts),
        "corpus_tokens": packed.total,
        "vocabulary": len(chat.tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": summary["tokens"] / packed.total,
    }


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A byte-level BPE: decode(encode(x)) == x for every text, the same texts give the same tokenizer.

    Raises:
        StageError: no room for the 256 bytes and the special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size < len(alphabet) + len(SPECIAL):
        raise StageError(
            f"tokenizer.vocab_size {size}: want at least {len(alphabet) + len(SPECIAL)}, every byte is a token"
        )
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=pad, bos_token=bos, eos_token=eos)


class Packed:
    """Documents as one endless stream of BOS .. EOS, epoch after epoch in fresh orders, cut into sequences.

    Sequence i holds tokens i * length .. (i + 1) * length of the stream, both included: every token is predicted once.
    """

    def __init__(self, chat: Chat, texts: Sequence[str], length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        tokenizer = chat.tokenizer
        opening = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        tokenizer.backend_tokenizer.encode_special_tokens = True  # "</s>" in a document is text
        encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        self._documents = [np.array([*opening, *e.ids, chat.eos_id], dtype=np.int32) for e in encoded]
        self.total = sum(map(len, self._documents))
        if self.total <= length:
            raise StageError(f"{self.total} tokens of documents do not fill one sequence of {length}; shorten it")
        self._epochs: dict[int, np.ndarray] = {}

    def item(self, index: int) -> Item:
        """Sequence `index`: its first token as the prompt, the others to be predicted."""
        first = index * self.length
        ids = self._span(first, first + self.length + 1)
        return Item(ids[:1], (ids[1:],), (None,), (0.0,), key=f"tokens {first}")

    def _span(self, first: int, last: int) -> np.ndarray:
        pieces = []
        while first < last:
            epoch, place = divmod(first, self.total)
            piece = self._epoch(epoch)[place : place + last - first]
            pieces.append(piece)
            first += len(piece)
        return np.concatenate(pieces)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {e: ids for e, ids in self._epochs.items() if e == epoch - 1}
            order = permutation(self.seed, "documents", epoch, len(self._documents))
            self._epochs[epoch] = np.concatenate([self._documents[i] for i in order])
        return self._epochs[epoch]
