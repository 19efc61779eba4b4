"""Texts of an evaluation that come back in a corpus: word for word, respelled, with something appended, or with words changed.

A text is compared by its words (no case, no punctuation) and their 1- to 3-grams, each weighted by how rare it is in the
corpus, so that what all prompts of a template share says little. Candidates come from an index of the rare n-grams
alone: the work grows with the corpus, not with its square.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST = 3  # words of an n-gram
RARE = 20  # an n-gram in at most so many texts of the corpus ..
RARE_SHARE = 0.002  # .. or in at most this share of them is rare
RAREST = 6  # .. and of every text so many are looked for, however often they stand there
EVIDENCE = 3  # rare n-grams that two texts must share to be compared
APPENDED = 0.9  # weight of the text that must come back in a longer one
LONGER = 1.25  # .. which has at least so many times its words
SIMILAR = 0.5  # texts alike differ in length by at most this factor
KINDS = ("verbatim", "respelled", "appended", "near")  # from the worst on
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Text:
    """A text and where it stands."""

    place: str
    text: str


@dataclass(frozen=True)
class Leak:
    """The worst that was found of one text. `overlap` is the share of its weight that comes back."""

    kind: str
    text: Text
    found: Text
    overlap: float


@dataclass(frozen=True)
class _Entry:
    text: Text
    key: str
    size: int  # words
    grams: frozenset[str]


def words(text: str) -> list[str]:
    """A text's words without case, punctuation, accents of compatibility forms and spacing."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def search(texts: Sequence[Text], corpus: Iterable[Text], near: float) -> list[Leak]:
    """The texts that come back in the corpus, each with the worst of its matches, in the order of `texts`.

    Args:
        near: share of a text's weight from which another of about its length counts as the same.

    A text without words, and a match of a text with itself (the same place), are left out.
    """
    asked = [entry for text in texts if (entry := _entry(text)).key]
    known = frozenset(gram for entry in asked for gram in entry.grams)
    there, frequency = _read(corpus, known)
    rare = max(RARE, RARE_SHARE * len(there))
    weight = {gram: math.log(1 + len(there) / max(1, frequency[gram])) for gram in known}
    index: dict[str, list[int]] = defaultdict(list)
    same: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(asked):
        same[entry.key].append(number)
        there_too = sorted((gram for gram in entry.grams if frequency[gram]), key=lambda gram: (frequency[gram], gram))
        for place, gram in enumerate(there_too):
            if frequency[gram] <= rare or place < RAREST:
                index[gram].append(number)
    totals = [sum(weight[gram] for gram in entry.grams) for entry in asked]
    worst: dict[int, Leak] = {}
    for other in there:
        shared = Counter(number for gram in other.grams for number in index.get(gram, ()))
        near_ones = {number for number, count in shared.items() if count >= EVIDENCE}
        for number in sorted(near_ones | set(same.get(other.key, ()))):
            entry = asked[number]
            if entry.text.place != other.text.place:
                overlap = sum(weight[gram] for gram in entry.grams & other.grams) / totals[number]
                _keep(worst, number, _compare(entry, other, overlap, near))
    return [worst[number] for number in sorted(worst)]


def _read(corpus: Iterable[Text], known: frozenset[str]) -> tuple[list[_Entry], Counter[str]]:
    """The corpus' texts with those n-grams that are asked about, and in how many different texts each of them stands."""
    there: list[_Entry] = []
    frequency: Counter[str] = Counter()
    seen: set[str] = set()
    for text in corpus:
        entry = _entry(text, known)
        there.append(entry)
        if entry.key not in seen:
            seen.add(entry.key)
            frequency.update(entry.grams)
    return there, frequency


def _entry(text: Text, known: frozenset[str] | None = None) -> _Entry:
    found = words(text.text)
    grams = frozenset(
        " ".join(found[i : i + n]) for n in range(1, LONGEST + 1) for i in range(max(0, len(found) - n + 1))
    )
    return _Entry(text, " ".join(found), len(found), grams if known is None else grams & known)


def _compare(entry: _Entry, other: _Entry, overlap: float, near: float) -> Leak | None:
    if entry.key == other.key:
        kind = "verbatim" if entry.text.text.strip() == other.text.text.strip() else "respelled"
    elif overlap >= APPENDED and other.size >= LONGER * entry.size:
        kind = "appended"
    elif overlap >= near and SIMILAR <= other.size / entry.size <= 1 / SIMILAR:
        kind = "near"
    else:
        return None
    return Leak(kind, entry.text, other.text, overlap)


def _keep(worst: dict[int, Leak], number: int, leak: Leak | None) -> None:
    if leak is None:
        return
    before = worst.get(number)
    if before is None or (KINDS.index(leak.kind), -leak.overlap) < (KINDS.index(before.kind), -before.overlap):
        worst[number] = leak
