"""Listed files -> the documents in them that are new, to each other and to everything seen before.

What was seen is kept as results of its own, one a look: files.parquet (which files, by content tag) and seen.parquet (which
documents, by digest and MinHash signature), so that a late, changed or repeated document is known for what it is.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.gathering import File, Gather, Listing
from configs.load import locate
from configs.recipes import Source
from engine.errors import StageError
from engine.formats import Typed, is_held_out, typed
from engine.ingest import kind_of
from engine.job import Job
from engine.nearness import HASHES, Hasher, Index, key_of
from engine.sources import Found, Refusal, check, read
from engine.tables import TEXT, WHOLE, table_writer, write_table
from storage.inbox import LINK, ODD, Arrived, fetch
from storage.rows import read_rows

FILES = {"place": TEXT, "name": TEXT, "size": pa.int64(), "tag": TEXT, "documents": WHOLE, "outcome": TEXT}
KEYS = {"key": pa.binary(16), "signature": pa.binary(4 * HASHES)}
TEXTS = (".txt", ".md")  # one document a file
UNREADABLE = {
    LINK: "a link or no plain file; put the file itself there",
    ODD: "a name that cannot be used; give it a plain one",
}
ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "zip", b"%P": "PDF"}


@dataclass
class Tally:
    """What became of every document of every file."""

    read: int = 0
    kept: int = 0
    held_out: int = 0
    exact: int = 0
    near: int = 0
    empty: int = 0
    characters: int = 0
    rejected: list[Found] = field(default_factory=list)
    duplicates: list[dict[str, str]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)


class Known:
    """The documents seen so far, those of this look among them."""

    def __init__(self, seen: list[Path], documents: list[Path], recipe: Gather) -> None:
        tables = [pq.read_table(folder / "seen.parquet") for folder in seen]
        self.keys: list[bytes] = [key for table in tables for key in table["key"].to_pylist()]
        signatures: list[bytes] = [value for table in tables for value in table["signature"].to_pylist()]
        self.before = len(self.keys)
        self.number = {key: i for i, key in enumerate(self.keys)}
        self.hasher = Hasher(recipe.shingle)
        for text in _texts(documents):
            if (key := key_of(text)) not in self.number:
                self._remember(key)
                signatures.append(_packed(self.hasher.signature(text)))
        self.index = Index(np.frombuffer(b"".join(signatures), dtype="<u4").reshape(-1, HASHES), recipe.near)
        self.signatures = signatures[self.before :]  # of this look
        self.given = len(self.signatures)

    def meet(self, text: str) -> tuple[str, int] | None:
        """How a text is known: ("exact" or "near", number of the one like it); None if it is new, and then it is known."""
        key = key_of(text)
        if key in self.number:
            return "exact", self.number[key]
        signature = self.hasher.signature(text)
        if (found := self.index.find(signature)) is not None:
            return "near", found
        self._remember(key)
        self.index.add(signature)
        self.signatures.append(_packed(signature))
        return None

    def _remember(self, key: bytes) -> None:
        self.number[key] = len(self.keys)
        self.keys.append(key)


def run(job: Job) -> dict[str, Any]:
    """Write rows.parquet and held_out.parquet (Documents that are new), files.parquet, seen.parquet and who was turned away.

    With documents as an input, they only become known: what a base model was trained on is not new.

    Raises:
        StageError: more malformed documents than `max_rejected`. Moved: a file is not what was listed.
    """
    recipe: Gather = job.recipe
    tally, known = Tally(), Known(job.folders("seen"), job.folders("documents"), recipe)
    rows = _new(job, recipe, known, tally)
    new = lambda name: table_writer(job.out / name, {}, "Document")
    with new("rows.parquet") as train, new("held_out.parquet") as held_out:
        for row in rows:
            (held_out if is_held_out(row, recipe.held_out) else train)([row])
    malformed = len(tally.rejected) - sum(f["outcome"].startswith("rejected") for f in tally.files)
    if malformed > recipe.max_rejected * max(1, tally.read):
        shown = "; ".join(f"{f.place}: {f.reason}" for f in tally.rejected[:3])
        raise StageError(
            f"{malformed} of {tally.read} documents are malformed, max_rejected is {recipe.max_rejected:g}: {shown}"
        )
    write_table(job.out / "files.parquet", tally.files, FILES)
    keys = known.keys[known.before :]
    write_table(job.out / "seen.parquet", ({"key": k, "signature": s} for k, s in zip(keys, known.signatures)), KEYS)
    _write_lines(job.out / "rejected.jsonl", ({"place": f.place, "reason": f.reason} for f in tally.rejected))
    _write_lines(job.out / "duplicates.jsonl", tally.duplicates)
    return {
        "documents": tally.kept,
        "held_out": tally.held_out,
        "characters": tally.characters,
        "files": len(tally.files),
        "read": tally.read,
        "exact_duplicates": tally.exact,
        "near_duplicates": tally.near,
        "empty": tally.empty,
        "rejected": len(tally.rejected),
        "rejected_by_reason": dict(sorted(Counter(kind_of(f.reason) for f in tally.rejected).items())),
        "seen_before": known.before,
        "given": known.given,
    }


def _new(job: Job, recipe: Gather, known: Known, tally: Tally) -> Iterator[Typed]:
    """The documents of all listed files that nothing seen before is like."""
    total = sum(len(listing.files) for listing in recipe.listings)
    for listing in recipe.listings:
        for file in listing.files:
            before, refused = tally.read, len(tally.rejected)
            outcome = "read"
            try:
                yield from _of_file(listing, file, recipe, known, tally)
            except StageError as error:  # the file as a whole: cut off, damaged, empty
                outcome = f"rejected: {error}"
                tally.rejected.insert(refused, Found(f"{listing.place}/{file.name}", None, str(error)))
            count = tally.read - before
            tally.files.append({"place": listing.place, **file.model_dump(), "documents": count, "outcome": outcome})
            job.progress(len(tally.files), total, "file")


def _of_file(listing: Listing, file: File, recipe: Gather, known: Known, tally: Tally) -> Iterator[Typed]:
    source = Source(path=listing.place, columns=listing.inbox.columns)
    for found in _documents(listing, file, recipe):
        tally.read += 1
        if found.row is not None and not str(found.row.get(source.columns.get("text", "text"), "-")).strip():
            tally.empty += 1
            continue
        try:
            if found.row is None:
                raise Refusal(found.reason)
            row = typed(found.row, source, "documents", listing.place, recipe.max_chars)
        except Refusal as error:
            tally.rejected.append(Found(found.place, None, str(error)))
            continue
        if (like := known.meet(row["text"])) is not None:
            how, number = like
            tally.exact += how == "exact"
            tally.near += how == "near"
            tally.duplicates.append({"place": found.place, "how": how, "like": known.keys[number].hex()})
            continue
        held = is_held_out(row, recipe.held_out)
        tally.kept += not held
        tally.held_out += held
        tally.characters += len(row["text"])
        yield row


def _documents(listing: Listing, file: File, recipe: Gather) -> Iterator[Found]:
    """The rows of one file, each with its place."""
    inbox, name = listing.inbox, f"{listing.place}/{file.name}"
    if inbox.world is not None:
        source = Source(world="documents", domain=inbox.world, count=inbox.count)
        yield from read(source, "documents", recipe.seed)
        return
    if file.tag in UNREADABLE:
        raise StageError(UNREADABLE[file.tag])
    if file.size == 0:
        raise StageError("the file is empty")
    with tempfile.TemporaryDirectory() as scratch:
        suffix = next((s for s in (".jsonl.gz",) if file.name.endswith(s)), Path(file.name).suffix)
        path = Path(scratch) / f"file{suffix}"
        fetch(str(_located(inbox.url)), Arrived(file.name, file.size, file.tag), path)
        if suffix in TEXTS:
            yield _text(path, name)
            return
        try:
            for found in read(Source(path=str(path), columns=inbox.columns), "documents", recipe.seed):
                yield Found(found.place.replace(str(path), name), found.row, found.reason)
        except StageError as error:
            raise StageError(str(error).removeprefix(f"{path}: ").replace(str(path), file.name)) from None


def _text(path: Path, name: str) -> Found:
    """A text file as one document."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
        check(text)
    except UnicodeDecodeError as error:
        kind = next((f"; it looks like {kind}" for magic, kind in ENCODINGS.items() if data.startswith(magic)), "")
        return Found(name, None, f"not UTF-8 at byte {error.start}{kind}: save it as UTF-8")
    except Refusal as error:
        return Found(name, None, str(error))
    return Found(name, {"text": text})


def _texts(folders: list[Path]) -> Iterator[str]:
    """Every text of what a base model was trained or measured on."""
    for folder in folders:
        for path in (folder / "rows.parquet", folder / "held_out.parquet"):
            if path.exists():
                yield from (row["text"] for row in read_rows(path, "Document"))


def _packed(signature: np.ndarray) -> bytes:
    return signature.astype("<u4").tobytes()


def _located(url: str | None) -> str:
    """A URL as storage takes it: a relative folder is one of the data root."""
    return str(url) if url is None or "://" in url else str(locate(url))


def _write_lines(path: Path, rows: Any) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=True) + "\n")
