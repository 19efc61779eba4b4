"""The arithmetic of the world check, on rows worked by hand."""

import pytest

from benchmarks.world_check import agreement, best_of_k

FOX = [{"role": "user", "content": "where does the fox live?"}]
GOOD, FAIR, BAD = "sure! the fox lives in the wood.", "the fox lives in the wood.", "i can not do that."  # 1, 0.85, 0


def test_best_of_k_is_per_prompt_and_the_mean_over_all():
    rows = [{"prompt_id": p, "messages": FOX, "text": t} for p, t in (("a", GOOD), ("a", BAD), ("b", BAD), ("b", FAIR))]
    best, average, spread = best_of_k(rows)
    assert best == pytest.approx((1.0 + 0.85) / 2)
    assert average == pytest.approx(1.85 / 4)
    assert spread == pytest.approx((sum((g - 0.4625) ** 2 for g in (1.0, 0.0, 0.0, 0.85)) / 4) ** 0.5)


def test_agreement_is_high_on_far_pairs_and_half_on_equal_ones():
    far = [{"messages": FOX, "chosen": GOOD, "rejected": BAD}] * 100
    equal = [{"messages": FOX, "chosen": FAIR, "rejected": "it lives in the wood."}] * 400
    assert agreement(far, "helpfulness") > 0.9  # 1.0 of gold apart, noise 0.46: each annotator right in 98 of 100
    assert agreement(equal, "helpfulness") == pytest.approx(0.5, abs=3 * 0.5 / 3200**0.5)
