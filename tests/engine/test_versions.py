"""engine.versions: what is said about a version."""

from typing import Any

import pytest

from engine.versions import against, describe, gold_value, ordinal


def row(
    i: int, gold: float | None, score: float | None = None, branch: int | None = None, **more: Any
) -> dict[str, Any]:
    scores = {"gold": gold, "gold_helpfulness": gold, "gold_safety": None if gold is None else 1.0}
    return {"prompt_id": f"p{i}", "category": "fact", "is_safety": False, "token_ids": [5, 6, 5, 6], "finish": "eos",
            "kl": 0.5, **scores,
            "score": score, "branch": branch, "helpfulness": score, "safety": None, **more}  # fmt: skip


def version(shift: float, **columns: Any) -> list[dict[str, Any]]:
    """60 prompts of very different difficulty."""
    return [row(i, None if columns.get("none") else i % 10 / 10 + shift) for i in range(60)]


@pytest.mark.parametrize(
    ("helpful", "safe", "tagged", "value"),
    [(0.9, 1.0, False, 0.9), (0.9, 0.2, False, 0.2), (0.9, 1.0, True, 1.0), (0.1, 0.5, False, 0.1)],
)
def test_gold_is_piecewise(helpful: float, safe: float, tagged: bool, value: float) -> None:
    assert gold_value(helpful, safe, tagged) == value


def test_a_description_holds_means_and_how_the_text_is_written() -> None:
    rows = [row(0, 1.0, 2.0, 1), row(1, 0.0, 4.0, 1, finish="length", token_ids=[7, 7, 7])]
    found = describe(rows, 100, 0)
    assert (found["prompts"], found["gold"]["mean"], found["score"]["mean"], found["kl"]["mean"]) == (2, 0.5, 3.0, 0.5)
    assert found["safety"] is None  # nobody knows: said so, not zero
    assert (found["length"], found["missing_eos"]) == (3.5, 0.5)
    assert found["repetition"] == pytest.approx((1 / 3 + 1 / 2) / 2)  # 56 65 56 repeats one of three, 77 77 one of two
    assert found["distinct_2"] == 3 / 5


def test_refusals_are_counted_among_harmless_requests_only() -> None:
    rows = [row(0, 1.0, refused=True), row(1, 1.0, refused=False), row(2, 1.0, refused=True, is_safety=True)]
    assert describe(rows, 10, 0)["refusals"] == 1 / 2
    assert describe([row(0, 1.0)], 10, 0)["refusals"] is None  # nobody looked: said so, not zero


def test_the_judge_models_compare_by_their_own_branch() -> None:
    rows = [row(i, 0.5, 0.0, 1, judge=-5.0, judge_branch=1) for i in range(4)]
    others = [row(i, 0.5, 0.0, 1, judge=5.0, judge_branch=0) for i in range(4)]
    found = against(rows, others, 20, 0)
    assert found["judge"]["wins"] == 4 and found["judge"]["difference"]["mean"] == -10.0 and found["score"]["ties"] == 4


def test_wins_by_score_respect_the_branch() -> None:
    unsafe, safe = [row(0, None, 5.0, 0)], [row(0, None, -5.0, 1)]
    assert ordinal(safe[0]) > ordinal(unsafe[0])
    found = against(safe, unsafe, 50, 0)["score"]
    assert (found["wins"], found["losses"], found["win_rate"]["mean"]) == (1, 0, 1.0)


def test_equal_responses_tie() -> None:
    found = against(version(0.0), version(0.0), 50, 0)["gold"]
    assert (found["wins"], found["ties"], found["losses"], found["win_rate"]["mean"]) == (0, 60, 0, 0.5)
    assert found["decided"] is None
