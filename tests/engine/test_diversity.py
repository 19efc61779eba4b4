import math

import pytest

from engine.diversity import bleu, self_bleu


def test_identical_texts_are_one_and_disjoint_texts_nothing() -> None:  # T83
    assert self_bleu(["the cow eats grass in the field"] * 3) == pytest.approx(1.0)
    assert self_bleu(["cow", "cow"]) == pytest.approx(1.0) and self_bleu(["", ""]) == 1.0
    assert self_bleu(["a b c d e", "f g h i j", "k l m n o"]) == 0.0
    assert self_bleu(["", "f g h"]) == 0.0


def test_one_text_alone_has_no_diversity() -> None:
    assert self_bleu(["a b c"]) is None and self_bleu([]) is None


def test_bleu_by_hand() -> None:
    """the cat sat on, against the cat sat down here (5 words): 3 of 4 words, (2+1)/(3+1), (1+1)/(2+1), (0+1)/(1+1) n-grams;
    the nearest reference has 5 words: brevity exp(1 - 5/4)."""
    wanted = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(-0.25)
    assert bleu(["the", "cat", "sat", "on"], [["the", "cat", "sat", "down", "here"]]) == pytest.approx(wanted)
    # a word counts at most as often as in the reference that has it most: the the the against the cat
    assert bleu(["the", "the", "the"], [["the", "cat"]]) == pytest.approx((1 / 3 * 1 / 3 * 1 / 2 * 1 / 1) ** 0.25)


def test_more_of_the_same_is_less_diverse() -> None:
    alike = ["the red fox runs fast", "the red fox runs home", "the red fox runs far"]
    mixed = ["the red fox runs fast", "my old boat is slow", "rain falls on all roofs"]
    found = self_bleu(alike), self_bleu(mixed)
    assert found[0] is not None and found[1] is not None and found[0] > 0.5 > 0.1 > found[1]
