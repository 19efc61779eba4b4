"""Which texts are the same, exactly or nearly: digests of normalised text, and MinHash signatures of word shingles.

N texts, P hash functions. The share of equal entries of two signatures estimates the Jaccard similarity J of their sets of
shingles with a standard error of sqrt(J (1 - J) / P), at most 0.044. Source: Broder 1997, banding as in Leskovec,
Rajaraman and Ullman, section 3.4: a pair is compared when one of BANDS bands of ROWS entries is equal, which for
J = 0.8 fails with probability (1 - 0.8^4)^32 = 5e-8.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

BANDS, ROWS = 32, 4
HASHES = BANDS * ROWS  # P
CHUNK = 4096  # shingles hashed at once
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers of it keep all bits


def normalise(text: str) -> str:
    """Without case and spacing: what counts as the same text."""
    return " ".join(text.casefold().split())


def key_of(text: str) -> bytes:
    """16 bytes that two texts share if and only if they are exact duplicates."""
    return hashlib.sha256(normalise(text).encode()).digest()[:16]


class Hasher:
    """Signatures of texts; remembers the hashes of words."""

    def __init__(self, shingle: int) -> None:
        self.shingle = shingle
        self._words: dict[str, int] = {}
        first = np.arange(1, HASHES + 1, dtype=np.uint64)
        self._salts = _mix(first * _BASE)  # one a hash function, fixed for ever: signatures are stored
        self._powers = np.array([pow(int(_BASE), i, 2**64) for i in range(shingle)], dtype=np.uint64)

    def shingles(self, text: str) -> np.ndarray:
        """Different word shingles as 64-bit hashes, [n] with n >= 1; a text of fewer words is one shingle."""
        words = _WORD.findall(text.casefold()) or [normalise(text)]
        hashes = np.array([self._hash(word) for word in words], dtype=np.uint64)
        size = min(self.shingle, len(hashes))
        windows = np.lib.stride_tricks.sliding_window_view(hashes, size)
        total = (windows * self._powers[:size]).sum(axis=1, dtype=np.uint64)
        return np.unique(_mix(total + np.uint64(size)))

    def signature(self, text: str) -> np.ndarray:
        """[P] uint32: the smallest hash of any shingle under each hash function."""
        found = np.full(HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
        shingles = self.shingles(text)
        for first in range(0, len(shingles), CHUNK):
            hashed = _mix(shingles[first : first + CHUNK, None] ^ self._salts)
            found = np.minimum(found, hashed.min(axis=0))
        return (found >> np.uint64(32)).astype(np.uint32)

    def _hash(self, word: str) -> int:
        found = self._words.get(word)
        if found is None:
            if len(self._words) > 1 << 20:  # a text of numbers must not fill the memory
                self._words.clear()
            found = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._words[word] = found
        return found


class Index:
    """Signatures that can be searched for one that is near: those known from the start, and those added since."""

    def __init__(self, known: np.ndarray, near: float) -> None:
        self.near, self.known = near, known.reshape(-1, HASHES)
        bands = _bands(self.known)
        self._order = [np.argsort(bands[:, b], kind="stable") for b in range(BANDS)]
        self._sorted = [bands[order, b] for b, order in enumerate(self._order)]
        self._added: list[np.ndarray] = []
        self._places: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]

    def find(self, signature: np.ndarray) -> int | None:
        """The number of the first signature (known ones first, then in order of adding) that is near enough, or None."""
        bands = _bands(signature[None])[0]
        ours: set[int] = set()
        for b, band in enumerate(bands):
            low, high = (np.searchsorted(self._sorted[b], band, side) for side in ("left", "right"))
            ours.update(self._order[b][low:high].tolist())
        if (found := self._first(self.known, sorted(ours), signature)) is not None:
            return found
        added = sorted({place for b, band in enumerate(bands) for place in self._places[b].get(int(band), ())})
        found = self._first(self._added, added, signature)
        return None if found is None else len(self.known) + found

    def add(self, signature: np.ndarray) -> None:
        """Remember a signature."""
        for b, band in enumerate(_bands(signature[None])[0]):
            self._places[b].setdefault(int(band), []).append(len(self._added))
        self._added.append(signature)

    def _first(self, held: np.ndarray | list[np.ndarray], places: Sequence[int], signature: np.ndarray) -> int | None:
        if not places:
            return None
        some = held[places] if isinstance(held, np.ndarray) else np.stack([held[i] for i in places])
        near = np.flatnonzero((some == signature).mean(axis=1) >= self.near)
        return places[near[0]] if len(near) else None


def _bands(signatures: np.ndarray) -> np.ndarray:
    """[N, P] -> [N, BANDS] uint64, one number a band."""
    rows = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    powers = np.array([pow(int(_BASE), i, 2**64) for i in range(ROWS)], dtype=np.uint64)
    return _mix((rows * powers).sum(axis=2, dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
