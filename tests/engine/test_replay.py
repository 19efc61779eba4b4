from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.replay import Mix, share, turns, weigh

SHARES = st.integers(0, 999).map(lambda n: Fraction(n, 1000))


def old(mix: Mix, count: int) -> list[int]:
    """1 for each replayed sequence."""
    return [int(mix.place(i)[0] > 0) for i in range(count)]


def test_a_quarter_is_every_fourth() -> None:
    assert old(Mix(share(0.25), (Fraction(1),)), 12) == [0, 0, 0, 1] * 3
    assert [Mix(share(0.25), (Fraction(1),)).place(i) for i in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (0, 3)]
    assert old(Mix(Fraction(0)), 5) == [0] * 5


def test_a_share_is_the_decimal_that_was_written() -> None:
    """As a binary number 0.1 is a little more than a tenth, and floor(0.3 * 10 sequences) would one day be one off."""
    assert share(0.1) == Fraction(1, 10) and share(0.005) == Fraction(1, 200)
    assert turns(10**9, share(0.3)) == 3 * 10**8


@settings(max_examples=60, deadline=None)
@given(SHARES, st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 60))
def test_replay_is_exact_within_one_sequence_in_every_window(replay: Fraction, weights: list[int], width: int) -> None:
    mix = Mix(replay, tuple(map(Fraction, weights)))
    marks = old(mix, 240)
    for first in range(240 - width):
        found = sum(marks[first : first + width])
        assert abs(found - width * replay) < 1
    for batch in range(0, 240, width):  # T78: realised share = replay +- 1 / batch
        assert abs(Fraction(sum(marks[: batch + width]), min(240, batch + width)) - replay) < Fraction(1, width)


@settings(max_examples=60, deadline=None)
@given(SHARES, st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(0, 400))
def test_every_sequence_is_read_once_in_order(replay: Fraction, weights: list[int], count: int) -> None:
    """Counts in closed form are those of going through the run, and each corpus is read without a gap."""
    mix = Mix(replay, tuple(map(Fraction, weights)))
    seen = [0] * (1 + len(weights))
    for index in range(count):
        corpus, before = mix.place(index)
        assert before == seen[corpus]
        seen[corpus] += 1
    assert mix.taken(count) == seen and sum(seen) == count


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.integers(1, 500))
def test_old_corpora_share_the_replay_by_weight(weights: list[int], count: int) -> None:
    """Of the replayed sequences each corpus has its share within one for every corpus before it in the list."""
    mix = Mix(Fraction(1, 2), tuple(map(Fraction, weights)))
    new, *found = mix.taken(2 * count)
    assert new == count
    for place, (taken, weight) in enumerate(zip(found, weights), start=1):
        assert abs(taken - Fraction(count * weight, sum(weights))) < place + 1


def test_weights_are_the_given_ones_or_the_tokens() -> None:
    assert weigh((), [30, 10]) == (30, 10)
    assert weigh((0.1, 0.3), [30, 10]) == (Fraction(1, 10), Fraction(3, 10))
    assert Mix(share(0.5), weigh((), [30, 10])).taken(80) == [40, 30, 10]
    with pytest.raises(AssertionError):
        Mix(share(0.5)).place(1)  # replay of nothing: refused before it comes here
