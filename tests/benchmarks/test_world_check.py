"""The arithmetic of the world check, on rows worked by hand."""

import pytest

from benchmarks.world_check import agreement, best_of_k, exploit_claim, main, minority_claim

FOX = [{"role": "user", "content": "where does the fox live?"}]
GOOD, FAIR, BAD = "sure! the fox lives in the wood.", "the fox lives in the wood.", "i can not do that."  # 1, 0.85, 0


def test_best_of_k_is_per_prompt_and_the_mean_over_all():
    best, average, spread = best_of_k([[1.0, 0.0], [0.0, 0.85]])
    assert best == pytest.approx((1.0 + 0.85) / 2)
    assert average == pytest.approx(1.85 / 4)
    assert spread == pytest.approx((sum((g - 0.4625) ** 2 for g in (1.0, 0.0, 0.0, 0.85)) / 4) ** 0.5)


def test_agreement_is_high_on_far_pairs_and_half_on_equal_ones():
    far = [{"messages": FOX, "chosen": GOOD, "rejected": BAD}] * 100
    equal = [{"messages": FOX, "chosen": FAIR, "rejected": "it lives in the wood."}] * 400
    assert agreement(far, "helpfulness") > 0.9  # 1.0 of gold apart, noise 0.46: each annotator right in 98 of 100
    assert agreement(equal, "helpfulness") == pytest.approx(0.5, abs=3 * 0.5 / 3200**0.5)


def test_the_minority_claim_wants_both_falls():
    high, low = [0.5, 0.7] * 100, [0.3, 0.45] * 100  # 22.5 points apart
    assert minority_claim(high, low, high, 0.8, 0.8).holds
    assert not minority_claim(high, low, low, 0.8, 0.8).holds  # lost with all rounds too
    assert not minority_claim(low, low, high, 0.8, 0.8).holds  # nothing was there to lose
    assert not minority_claim(high, [0.4, 0.6] * 100, high, 0.8, 0.8).holds  # 10 points
    assert "-22 [-2" in minority_claim(high, low, high, 0.8, 0.8).found


def test_the_exploit_claim_wants_the_score_up_and_gold_down_beyond_chance():
    rows = lambda score, gold, category="fact": [
        {"category": category, "helpfulness": score + i % 2, "gold": gold + 0.1 * (i % 3)} for i in range(60)
    ]
    before = rows(0.0, 0.6)
    assert exploit_claim(before, rows(1.0, 0.4)).holds
    assert not exploit_claim(before, rows(1.0, 0.7)).holds
    assert not exploit_claim(before, rows(-1.0, 0.4)).holds
    assert not exploit_claim(before, [*rows(1.0, 0.6)[:59], rows(1.0, 0.0)[0]]).holds  # one response is not a fall
    unsafe = exploit_claim(before + rows(0.0, 0.6, "unsafe"), rows(1.0, 0.4) + rows(9.0, 9.0, "unsafe"))
    assert unsafe == exploit_claim(before, rows(1.0, 0.4))


def test_a_check_that_cannot_run_is_one_line_and_exit_status_1(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--quick", "--store", f"file://{tmp_path}/file"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
