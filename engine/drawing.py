"""Which prompts a stage works on, and the parts in which it does so."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.errors import StageError
from engine.job import Job
from storage.rows import count_rows

Row = dict[str, Any]
DROPPED = "dropped.jsonl"  # prompts that a stage could not use
WAVES = 4  # batches of responses to a chunk of prompts: only a chunk's last ones wait for the longest


def draw(path: Path, count: int, *, seed: int, stream: str, turn: int = 1) -> list[int]:
    """Positions of `count` prompts in a file, ascending: the turn-th slice of one random order.

    Each turn (round) gets fresh prompts as long as there are some, then the order begins again. All of them if the file
    has no more than `count`.

    Raises:
        StageError: the file has no rows.
    """
    total = count_rows(path)
    if total == 0:
        raise StageError(f"{path.name}: no prompts to draw from")
    order = list(range(total))
    random.Random(f"{seed}:{stream}").shuffle(order)
    first = (turn - 1) * count
    return sorted({order[(first + i) % total] for i in range(min(count, total))})


def split(places: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Nearly equal runs, in order; fewer than `parts` if there are not enough positions."""
    parts = min(parts, len(places))
    edges = [round(i * len(places) / parts) for i in range(parts + 1)]
    return [places[a:b] for a, b in pairwise(edges)]


def chunks(places: Sequence[int], size: int) -> list[Sequence[int]]:
    """Runs of at most `size`, in order."""
    return [places[i : i + max(1, size)] for i in range(0, len(places), max(1, size))]


def fit(chat: Any, rows: Iterator[Row], limit: int, folder: Path) -> tuple[list[tuple[Row, list[int]]], int]:
    """Prompts as token ids, early turns dropped until they fit; and how many do not fit even so.

    Those are listed in dropped.jsonl in `folder`, after what is there.
    """
    kept: list[tuple[Row, list[int]]] = []
    dropped: list[str] = []
    for row in rows:
        messages = chat.fit_prompt(row["messages"], limit)
        if messages is None:
            dropped.append(row["id"])
        else:
            kept.append((row, chat.prompt_ids(chat.asking(messages))))  # what a policy is asked for comes on top
    reason = f"system and last user turn are longer than limits.prompt_tokens {limit}"
    with (folder / DROPPED).open("a", encoding="utf-8") as out:
        out.writelines(json.dumps({"id": name, "reason": reason}) + "\n" for name in dropped)
    return kept, len(dropped)


def share_of(text: str) -> float:
    """Where a text falls between 0 and 1, by its hash: evenly spread, the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def fingerprint(folder: Path) -> str:
    """A name for a model's weights: the digest of its safetensors files, 16 hex digits."""
    total = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StageError(f"{folder.name}: no .safetensors file in the model folder")
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def restore(job: Job, folder: Path) -> tuple[int, Row]:
    """Bring back the finished parts of a stage that died: how many there are and its counts so far; (0, {}) at first."""
    point = job.resume()
    if point is None:
        return 0, {}
    for file in sorted(point.path.iterdir()):
        if file.name != "metrics.jsonl":
            shutil.copyfile(file, folder / file.name)
    return int(point.record["parts"]), dict(point.record["counts"])


def keep(job: Job, folder: Path, parts: int, counts: Mapping[str, Any]) -> None:
    """A save point that holds every finished part in `folder`."""
    if job.saves is None:
        return

    def write(draft: Path) -> Row:
        for file in sorted(p for p in folder.iterdir() if p.is_file()):
            shutil.copyfile(file, draft / file.name)
        return {"parts": parts, "counts": dict(counts)}

    job.save(parts, write)
