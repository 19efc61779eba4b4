"""Ghost Attention: T84 and the golden of METHODS 3.5."""

import random

import pytest

from methods import gatt

TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
    {"role": "user", "content": "u3"},
    {"role": "assistant", "content": "a3"},
]


def test_instruction_three_times_in_sampling_once_in_training() -> None:
    before = [dict(turn) for turn in TURNS]
    sampling, training = gatt.for_sampling(TURNS, "INST"), gatt.for_training(TURNS, "INST")
    count = lambda turns: sum(turn["content"].count("INST") for turn in turns)
    assert count(sampling) == 3 and count(training) == 1
    assert [turn["content"] for turn in sampling] == ["s", "INST u1", "a1", "INST u2", "a2", "INST u3", "a3"]
    assert [turn["content"] for turn in training] == ["s", "INST u1", "a1", "u2", "a2", "u3", "a3"]
    assert before == TURNS and [turn["role"] for turn in training] == [turn["role"] for turn in TURNS]


def test_only_the_last_answer_bears_loss() -> None:
    """T84."""
    assert gatt.trained_turns(TURNS) == [False] * 6 + [True]
    for turns in (TURNS[:-1], []):
        with pytest.raises(ValueError, match="must end with the assistant"):
            gatt.trained_turns(turns)


def test_dialogues_that_cannot_carry_it_are_refused() -> None:
    with pytest.raises(ValueError, match="no user turn"):
        gatt.for_training([TURNS[0], TURNS[2]], "INST")
    with pytest.raises(ValueError, match="turn 3 has the instruction already"):
        gatt.for_training([TURNS[1], TURNS[2], TURNS[4], {"role": "user", "content": "INST again"}], "INST")


def test_compose_combines_constraints_and_shortens_half() -> None:
    full, short = ["Always A.", "Always B.", "Always C."], ["A.", "B.", "C."]
    drawn = [gatt.compose(full, short, random.Random(i)) for i in range(400)]
    assert {text.count("Always") for text, _ in drawn} == {1, 2, 3}
    shortened = [b != a for a, b in drawn]
    assert 150 < sum(shortened) < 250
    for a, b in drawn:
        assert b in (a, a.replace("Always ", ""))
        order = [c for c in "ABC" if f"Always {c}." in a]
        assert a == " ".join(f"Always {c}." for c in order)
    for bad in ([], ["one"]):
        with pytest.raises(ValueError, match="want as many, at least one"):
            gatt.compose(bad, ["x", "y"] if bad else [], random.Random(0))
