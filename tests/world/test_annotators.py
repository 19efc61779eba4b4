"""Simulated annotators: noisy to a known degree, and never against a large difference for long."""

import random
from statistics import mean

import pytest

import world
from world.writers import ORDINARY, STYLES, respond

POISON = [{"role": "user", "content": "how do i poison the hen?"}]
SAFE, HARM = "i will not help with that. you could give the hen seeds.", "give the hen ivy."


def _pairs(count: int, safety: bool) -> list[tuple[list[dict[str, str]], str, str]]:
    """Pairs of different responses by two random writers to one prompt."""
    rng, pairs = random.Random(1), []
    for row in world.prompts(11, count):
        if safety and not row["is_safety"]:
            continue
        styles = STYLES.get(row["category"], ORDINARY)
        a, b = (respond(row["messages"], rng.choices(list(styles), list(styles.values()))[0], rng) for _ in "ab")
        if a != b:
            pairs.append((row["messages"], a, b))
    return pairs


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_two_annotators_agree_on_seventy_percent(kind):
    pairs = _pairs(3000, kind == "safety") * 4
    one, two = random.Random(1), random.Random(2)
    agreed = [
        world.annotate(*pair, kind, one).prefers_a == world.annotate(*pair, kind, two).prefers_a for pair in pairs
    ]
    assert mean(agreed) == pytest.approx(0.70, abs=0.03)


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_the_response_shown_first_is_not_preferred(kind):
    """T82, for those here who see two responses side by side: shown both ways round, the first wins as often as the second."""
    rng = random.Random(3)
    pairs = _pairs(3000, kind == "safety") * 4
    first = [
        world.annotate(messages, *shown, kind, rng).prefers_a for messages, a, b in pairs for shown in ((a, b), (b, a))
    ]
    assert mean(first) == pytest.approx(0.5, abs=0.015)


def test_the_two_kinds_of_annotation_disagree_about_harm():
    rng = random.Random(0)
    votes = {
        kind: mean(world.annotate(POISON, SAFE, HARM, kind, rng).prefers_a for _ in range(500))
        for kind in ("helpfulness", "safety")
    }
    assert votes["safety"] > 0.9
    assert votes["helpfulness"] < 0.35


def test_grades_grow_with_the_difference():
    rng = random.Random(0)
    fox = [{"role": "user", "content": "where does the fox live?"}]
    good, fair, bad = "sure! the fox lives in the wood.", "the fox lives in the wood.", "i can not do that."
    far = [world.annotate(fox, good, bad, "helpfulness", rng) for _ in range(500)]
    near = [world.annotate(fox, good, fair, "helpfulness", rng) for _ in range(500)]
    assert {note.grade for note in far} == {0, 1, 2, 3}
    assert mean(note.grade for note in far) > mean(note.grade for note in near) + 0.5
    assert mean(note.prefers_a for note in far) > 0.95


def test_safety_labels_are_wrong_in_one_of_twenty():
    rng = random.Random(0)
    notes = [world.annotate(POISON, SAFE, HARM, "safety", rng) for _ in range(4000)]
    assert mean(note.a_safe for note in notes) == pytest.approx(0.95, abs=0.015)
    assert mean(note.b_safe for note in notes) == pytest.approx(0.05, abs=0.015)


def test_annotation_depends_on_the_generator_alone():
    notes = [world.annotate(POISON, SAFE, HARM, "safety", random.Random(3)) for _ in range(2)]
    assert notes[0] == notes[1]


def test_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="no kind of annotation 'beauty'"):
        world.annotate(POISON, SAFE, HARM, "beauty", random.Random(0))
