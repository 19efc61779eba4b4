"""What is evaluated against what is trained on: leaks counted, listed and judged, over splits, sources and rounds."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.certify import Leakage
from engine.drawing import share_of
from engine.job import Job
from engine.overlap import KINDS, Leak, Text, search, words
from storage.rows import read_rows

Row = Mapping[str, Any]
EXACT = KINDS[:2]
SURE = 2.58  # standard errors, of a one-sided test at half a percent
SCHEMAS = {"prompts": "Prompt", "demonstrations": "Example", "preferences": "Preference"}


def run(job: Job) -> dict[str, Any]:
    """Write leakage.json (counts and shares) and leaks.jsonl (each text with the worst of its matches).

    Prompts kept for evaluation, and the first turns of pairs kept for it, against every user turn in training; the
    responses of such pairs against every response in training.
    """
    recipe: Leakage = job.recipe
    asked = [text for role in ("prompts", "preferences") for text in opening_turns(_rows(job, role, held_out=True))]
    turns = [text for role in SCHEMAS for text in user_turns(_rows(job, role))]
    answers = [text for text in responses(_rows(job, "preferences", held_out=True)) if is_long(text, recipe)]
    given = [text for role in ("demonstrations", "preferences") for text in responses(_rows(job, role))]
    found, listed = {}, []
    for what, texts, corpus in (("prompts", asked, turns), ("responses", answers, given)):
        found[what], leaks = compare(texts, corpus, recipe)
        listed += [{"what": what, **as_row(leak)} for leak in leaks]
    problems = [text for what in found for text in judge(found[what], what, recipe)]
    report = {**found, "problems": problems, "passed": not problems, "on_leak": recipe.on_leak}
    (job.out / "leakage.json").write_text(json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in listed[: recipe.listed])
    (job.out / "leaks.jsonl").write_text("".join(lines), encoding="utf-8")
    return report


def compare(texts: Sequence[Text], corpus: Sequence[Text], recipe: Leakage) -> tuple[dict[str, Any], list[Leak]]:
    """Leaks of the texts in the corpus, and how the share of near-duplicates compares with the corpus' own.

    beyond: how much more frequent they are than among the corpus' own texts, less 2.6 standard errors; not below 0.
    """
    asked, there = distinct(texts), distinct(corpus)
    leaks = search(asked, corpus, recipe.near)
    kinds = Counter(leak.kind for leak in leaks)
    sample = sorted(there, key=lambda text: share_of(f"{recipe.seed}:leakage:{text.text}"))[: recipe.sample]
    similar = sum(kinds[kind] for kind in KINDS if kind not in EXACT)
    rest = len(asked) - sum(kinds[kind] for kind in EXACT)
    share, natural = similar / max(1, rest), len(search(sample, there, recipe.near)) / max(1, len(sample))
    error = math.sqrt(sum(p * (1 - p) / max(1, n) for p, n in ((share, rest), (natural, len(sample)))))
    numbers = {
        "texts": len(asked),
        "corpus": len(there),
        **{kind: kinds[kind] for kind in KINDS},
        "share": share,
        "natural": natural,
        "beyond": max(0.0, share - natural - SURE * error),
    }
    return numbers, leaks


def judge(found: Mapping[str, Any], what: str, recipe: Leakage) -> list[str]:
    """What is wrong, a sentence each; empty if nothing is."""
    problems = []
    exact = sum(found[kind] for kind in EXACT)
    if exact:
        problems.append(f"{exact} of {found['texts']} evaluation {what} stand in the training rows, none wanted")
    if found["beyond"] > recipe.excess:
        problems.append(
            f"{found['share']:.0%} of the evaluation {what} have a near-duplicate in the training rows, "
            f"{found['natural']:.0%} of the training rows' own have one"
        )
    return problems


def distinct(texts: Iterable[Text]) -> list[Text]:
    """The texts whose words differ, the first of each."""
    found: dict[str, Text] = {}
    for text in texts:
        found.setdefault(" ".join(words(text.text)), text)
    found.pop("", None)
    return list(found.values())


def opening_turns(rows: Iterable[tuple[str, Row]]) -> Iterator[Text]:
    """The first user turn of each row, which decides its split."""
    for place, row in rows:
        yield Text(place, next(m["content"] for m in row["messages"] if m["role"] == "user"))


def user_turns(rows: Iterable[tuple[str, Row]]) -> Iterator[Text]:
    """Every user turn of each row."""
    for place, row in rows:
        yield from (Text(place, m["content"]) for m in row["messages"] if m["role"] == "user")


def responses(rows: Iterable[tuple[str, Row]]) -> Iterator[Text]:
    """Every response of each row: assistant turns, and both sides of a pair."""
    for place, row in rows:
        yield from (Text(place, m["content"]) for m in row["messages"] if m["role"] == "assistant")
        yield from (Text(place, row[side]) for side in ("chosen", "rejected") if side in row)


def is_long(text: Text, recipe: Leakage) -> bool:
    """Whether a response says enough to be told from what anybody would say."""
    return len(words(text.text)) >= recipe.least_words


def as_row(leak: Leak) -> dict[str, Any]:
    """A leak as plain data."""
    return {
        "kind": leak.kind,
        "overlap": round(leak.overlap, 4),
        "place": leak.text.place,
        "text": leak.text.text,
        "found_in": leak.found.place,
        "found": leak.found.text,
    }


def _rows(job: Job, role: str, *, held_out: bool = False) -> Iterator[tuple[str, Row]]:
    """(place, row) of an input's training or held-out rows; nothing where the input is not given."""
    name = "held_out.parquet" if held_out else "rows.parquet"
    for folder in job.folders(role):
        if (folder / name).exists():
            yield from placed(folder / name, f"{role}{' held out' if held_out else ''}", SCHEMAS[role])


def placed(path: Path, role: str, schema: str) -> Iterator[tuple[str, Row]]:
    """The rows of a file with where each stands."""
    for number, row in enumerate(read_rows(path, schema)):
        yield f"{role} {number}: {row['source']}", row
