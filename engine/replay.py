"""Which corpus each sequence of a run comes from: old ones in place of a fixed share of the new, spread evenly.

Drawing by chance would give the share on average only. Here the first n sequences hold floor(n * share) replayed ones, so
that in every window of n sequences their number is within one of n * share: in each batch, and across any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


def share(value: float) -> Fraction:
    """A share as it was written: 0.1 is a tenth, not the nearest binary number."""
    return Fraction(str(value))


def turns(count: int, part: Fraction) -> int:
    """How many of the first `count` belong to a part."""
    return count * part.numerator // part.denominator


@dataclass(frozen=True)
class Mix:
    """Sequence numbers of a run -> corpora. Corpus 0 is the new one, 1 .. are the old ones.

    replay: the old corpora's share of all sequences.
    weights: of the old corpora among themselves; the first is spread evenly over the replayed sequences, the second over
        what the first leaves, and so on.
    """

    replay: Fraction
    weights: tuple[Fraction, ...] = ()

    def place(self, index: int) -> tuple[int, int]:
        """(corpus, how many sequences of it came before) of sequence `index` of the run."""
        before = turns(index, self.replay)
        if turns(index + 1, self.replay) == before:
            return 0, index - before
        for corpus, part in enumerate(self._parts(), start=1):
            own = turns(before, part)
            if turns(before + 1, part) > own:
                return corpus, own
            before -= own
        raise AssertionError("the last part takes all that is left")

    def taken(self, count: int) -> list[int]:
        """How many of the first `count` sequences are of each corpus."""
        left = turns(count, self.replay)
        found = [count - left]
        for part in self._parts():
            own = turns(left, part)
            found.append(own)
            left -= own
        return found

    def _parts(self) -> list[Fraction]:
        """Each old corpus's share of what those before it leave; the last takes all."""
        return [weight / sum(self.weights[i:]) for i, weight in enumerate(self.weights)]


def weigh(given: Sequence[float], tokens: Sequence[int]) -> tuple[Fraction, ...]:
    """Weights of the old corpora: the given ones, else their tokens, as if one drew from all old text alike."""
    return tuple(share(weight) for weight in given) if given else tuple(Fraction(size) for size in tokens)
