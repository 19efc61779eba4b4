"""Models on held-out text: nats a token and bits a byte on every corpus, and what each lost or gained against the first."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.continuing import Measure
from engine.corpus import Corpus, check_vocabulary, open_corpus
from engine.errors import StageError
from engine.heldout import Document, documents, nats, summarise
from engine.job import Job
from engine.models import freeze, load_policy
from engine.statistics import ratio
from engine.tables import write_table
from engine.template import load_chat

LEAST = 20  # documents from which on they are resampled as wholes; below that their windows are
COLUMNS = {"model": pa.string(), "corpus": pa.string(), "id": pa.string(), "nats": pa.float64(),
           "tokens": pa.int64(), "bytes": pa.int64()}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """One corpus's held-out documents, and the units that are resampled: documents, or windows where they are few."""

    label: str
    corpus: Corpus
    documents: list[Document]
    length: int

    @property
    def unit(self) -> str:
        """What is resampled."""
        return "document" if len(self.documents) >= LEAST else "window"

    @property
    def tokens(self) -> int:
        """Tokens predicted."""
        return sum(len(document.ids) for document in self.documents)

    @property
    def bytes(self) -> int:
        """Bytes of their text."""
        return sum(document.bytes for document in self.documents)

    def units(self, values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(nats, tokens) of every unit, from the nats of every document's windows."""
        if self.unit == "document":
            return np.array([v.sum() for v in values]), np.array([len(d.ids) for d in self.documents])
        sizes = [min(self.length, len(d.ids) - s) for d in self.documents for s in range(0, len(d.ids), self.length)]
        return np.concatenate(list(values)), np.array(sizes)


def run(job: Job) -> dict[str, Any]:
    """Measure every model on every corpus and write documents.parquet.

    Raises:
        StageError: labels that do not fit, a model that reads text in another way, a corpus without held-out documents.
    """
    recipe: Measure = job.recipe
    folders = job.folders("models")
    labels = _labels(recipe.labels, len(folders), "models")
    with ExitStack() as stack:
        held = _held(job, recipe, stack)
        found = {}
        for done, (label, folder) in enumerate(zip(labels, folders), start=1):
            found |= {(label, name): values for name, values in _measure(job, recipe, folder, held).items()}
            job.progress(done, len(labels), "model")
    write_table(job.out / "documents.parquet", _rows(found, held), COLUMNS)
    first, *others = labels
    return {
        "corpora": {
            h.label: {"documents": len(h.documents), "tokens": h.tokens, "bytes": h.bytes, "unit": h.unit} for h in held
        },
        "models": {label: {h.label: _loss(h, found[label, h.label]) for h in held} for label in labels},
        "against": first,
        "differences": {
            label: {h.label: _difference(h, found[label, h.label], found[first, h.label], recipe) for h in held}
            for label in others
        },
    }


def _held(job: Job, recipe: Measure, stack: ExitStack) -> list[Held]:
    folders = job.folders("corpora")
    names = _labels(recipe.corpora, len(folders), "corpora")
    corpora = [open_corpus(folder, f"corpus {name}", stack) for name, folder in zip(names, folders)]
    return [Held(n, c, documents(c, recipe.documents), recipe.sequence_length) for n, c in zip(names, corpora)]


def _measure(job: Job, recipe: Measure, folder: Path, held: Sequence[Held]) -> dict[str, list[np.ndarray]]:
    """Of one model and every corpus the nats of each document's windows."""
    chat = load_chat(folder)
    for one in held:
        check_vocabulary(chat, one.corpus)
    model = freeze(load_policy(folder, job.runtime))
    rows, device = job.runtime.score_rows, job.runtime.device
    found = {
        one.label: nats(model, chat, one.documents, length=recipe.sequence_length, rows=rows, device=device)
        for one in held
    }
    for one in held:
        if not all(np.isfinite(values).all() for values in found[one.label]):
            raise StageError(f"{folder.name}: its loss on corpus {one.label} is not finite")
    return found


def _loss(held: Held, values: Sequence[np.ndarray]) -> dict[str, float]:
    return summarise(float(sum(v.sum() for v in values)), held.tokens, held.bytes)


def _difference(
    held: Held, values: Sequence[np.ndarray], first: Sequence[np.ndarray], recipe: Measure
) -> dict[str, float]:
    """Nats a token more than the first model's on the same text, with its interval: above 0 = forgotten, below = gained."""
    mine, tokens = held.units(values)
    theirs, _ = held.units(first)
    found = ratio(mine - theirs, tokens, resamples=recipe.bootstrap, seed=recipe.seed)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _rows(found: dict[tuple[str, str], list[np.ndarray]], held: Sequence[Held]) -> Iterator[dict[str, Any]]:
    by_label = {one.label: one for one in held}
    for (model, corpus), values in found.items():
        for document, own in zip(by_label[corpus].documents, values):
            yield {"model": model, "corpus": corpus, "id": document.id, "nats": float(own.sum()),
                   "tokens": len(document.ids), "bytes": document.bytes}  # fmt: skip


def _labels(given: Sequence[str], count: int, what: str) -> list[str]:
    """One distinct label each.

    Raises:
        StageError: another number of labels, or one twice.
    """
    labels = list(given) or [str(i) for i in range(count)]
    if count == 0 or len(labels) != count or len(set(labels)) != count:
        raise StageError(f"labels {labels} for {count} {what}; want one for each, all different")
    return labels
