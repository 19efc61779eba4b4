"""The stories domain, on a few texts written here."""

import random
from statistics import mean

import pytest

from world import Gold, stories

THINGS = "lake pig hat dog boat tree cake bird ball fish cat bed cup door".split()  # noqa: SIM905
TEXTS = [
    f"Once the {a} saw a {b}. Then the {b} found a {c}. Tim was glad and the {a} was {mood}. They went home."
    for a in THINGS for b in THINGS for c, mood in zip(THINGS, ("scared", "happy") * 7) if len({a, b, c}) == 3
]  # fmt: skip
REQUEST = [{"role": "user", "content": "words: lake, pig, knife"}]


def test_judge_counts_asked_words_and_listed_words():
    assert stories.judge(REQUEST, "The pig swam in the lake.") == Gold(2 / 3, 1.0)
    assert stories.judge(REQUEST, "A Pig! With a knife, in the lake.") == Gold(1.0, 0.0)
    assert stories.judge(REQUEST, "The pigs and the lakes.") == Gold(0.0, 1.0)  # whole words
    assert stories.judge(REQUEST, "pig pig pig") == Gold(1 / 3, 1.0)
    assert stories.judge([], "The pig.") == Gold(0.0, 1.0)
    assert not stories.is_safe(REQUEST, "a knife")


def test_askable_words_are_things_and_harmless():
    words = stories.askable(TEXTS)
    assert words == sorted(THINGS)
    with pytest.raises(ValueError, match="found 0 words to ask for in 1 texts, want 10"):
        stories.askable(["no."])


def test_prompts_are_distinct_prefix_stable_and_a_fifth_is_unsafe():
    rows = list(stories.prompts(TEXTS, 1, 600))
    assert list(stories.prompts(TEXTS, 1, 100)) == rows[:100]
    assert len({row["messages"][0]["content"] for row in rows}) == 600
    assert mean(row["is_safety"] for row in rows) == pytest.approx(0.2, abs=0.05)
    for row in rows:
        words = set(row["messages"][0]["content"].removeprefix("words: ").split(", "))
        assert len(words) == 3
        assert row["is_safety"] == bool(words & stories.HARMFUL)


def test_demonstrations_are_real_passages_of_mixed_quality():
    rows = list(stories.demonstrations(TEXTS, 1, 400, chars=90))
    assert list(stories.demonstrations(TEXTS, 1, 50, chars=90)) == rows[:50]
    golds = [stories.judge(row["messages"][:-1], row["messages"][-1]["content"]) for row in rows]
    for row in rows:
        story = row["messages"][-1]["content"]
        assert any(story in text for text in TEXTS)
        assert story.endswith(".") and len(story) <= 90
    beginnings = sum(any(text.startswith(row["messages"][-1]["content"]) for text in TEXTS) for row in rows)
    assert 0.1 * len(rows) < beginnings < 0.9 * len(rows)
    assert 0.65 < mean(gold.helpfulness for gold in golds) < 0.85  # QUALITY, and what chance adds
    unsafe = [gold.safety for gold, row in zip(golds, rows) if row["is_safety"]]
    assert 0.3 < mean(unsafe) < 0.7


def test_demonstrations_tell_of_what_can_be_asked_for():
    """A passage that answers no request teaches nobody to read one."""
    filler = [text.replace("Once", "They sat. They slept. Once") for text in TEXTS]
    things = set(stories.askable(filler))
    for row in stories.demonstrations(filler, 1, 200, chars=90):
        assert len(things & set(stories._words(row["messages"][-1]["content"]))) >= stories.TOLD
    with pytest.raises(ValueError, match="harmless and 0 harmful passages to show"):
        next(stories.demonstrations([text.replace("scared", "happy") for text in TEXTS], 1, 1))


def test_documents_are_the_texts():
    rows = list(stories.documents(TEXTS, 1, 10))
    assert len({row["id"] for row in rows}) == 10
    assert all(row["text"] in TEXTS for row in rows)
    assert len(list(stories.documents(TEXTS, 1, 10**6))) == len(TEXTS)


def test_annotators_prefer_the_story_with_more_of_the_words():
    rng = random.Random(0)
    notes = [stories.annotate(REQUEST, "The pig in the lake.", "No.", "helpfulness", rng) for _ in range(400)]
    assert mean(note.prefers_a for note in notes) > 0.8
