"""Choosing among scored responses: ties, duplicates, truncation, branches; and the methods that imitate the chosen."""

import math
import random
from collections import Counter

import pytest

from methods import conditional, filtered, rejection, rwr, steerlm
from methods.candidates import best_first, comparable, eligible, moments, quantile, rank, spread


def candidates(*scores: float, **more) -> list[dict]:
    return [{"text": f"t{i}", "score": s, "branch": 1, "finish": "eos", **more} for i, s in enumerate(scores)]


texts = lambda rows: [row["response"] for row in rows]


def test_rejection_takes_the_best_by_branch_then_score() -> None:
    given = candidates(1.0, 5.0, 2.0)
    assert texts(rejection.select(given, rejection.Config(), random.Random(0))) == ["t1"]
    given[1]["branch"] = 0
    assert texts(rejection.select(given, rejection.Config(), random.Random(0))) == ["t2"]
    assert texts(rejection.select(given, rejection.Config(keep=2), random.Random(0))) == ["t2", "t0"]
    assert texts(rejection.select(given, rejection.Config(keep=9), random.Random(0))) == ["t2", "t0", "t1"]
    assert texts(rejection.select(given, rejection.Config(take="worst"), random.Random(0))) == ["t1"]
    assert texts(rejection.select(given, rejection.Config(take="worst", keep=2), random.Random(0))) == ["t1", "t0"]
    assert rejection.select([], rejection.Config(), random.Random(0)) == []


def test_ties_are_broken_evenly() -> None:
    """T72: the first of equals is often the shortest or the greedy one."""
    given = candidates(1.0, 1.0, 1.0, 0.0)
    seen = Counter(texts(rejection.select(given, rejection.Config(), random.Random(i)))[0] for i in range(3000))
    assert set(seen) == {"t0", "t1", "t2"}
    assert all(abs(n - 1000) < 120 for n in seen.values())
    assert rejection.select(given, rejection.Config(), random.Random(4)) == rejection.select(
        given, rejection.Config(), random.Random(4)
    )


def test_every_prompt_gives_as_many_rows() -> None:
    """T73: an easy prompt does not crowd out a hard one."""
    for scores in ((9.0, 8.0, 7.0), (-9.0, -8.0, -7.0)):
        assert len(rejection.select(candidates(*scores), rejection.Config(keep=2), random.Random(0))) == 2


def test_truncated_responses() -> None:
    given = candidates(1.0, 5.0, 2.0)
    given[1]["finish"] = "length"
    take = lambda **settings: texts(rejection.select(given, rejection.Config(**settings), random.Random(0)))
    assert take() == ["t2"]
    assert take(truncated="keep") == ["t1"]
    assert take(truncated="penalise", penalty=2.9) == ["t1"]
    assert take(truncated="penalise", penalty=3.1) == ["t2"]
    assert given[1]["score"] == 5.0  # the caller's candidate is not marked down
    assert rejection.select([{**given[1]}], rejection.Config(), random.Random(0)) == []


def test_equal_texts_count_once() -> None:
    given = [
        {"text": "a", "score": 1.0, "finish": "eos", "round": 1},
        {"text": "b", "score": 2.0, "finish": "eos", "round": 1},
        {"text": "a", "score": 3.0, "finish": "eos", "round": 2},
        {"text": "a", "score": 3.0, "finish": "eos", "round": 3},
        {"text": "b", "score": 9.0, "finish": "eos", "round": 4, "branch": 0},
    ]
    assert [(c["text"], c["round"]) for c in eligible(given, "keep", 0.0)] == [("a", 2), ("b", 1)]
    assert len(rejection.select(given, rejection.Config(keep=9), random.Random(0))) == 2
    cut = [{"text": "a", "score": 9.0, "finish": "length"}, {"text": "a", "score": 1.0, "finish": "eos"}]
    assert [c["score"] for c in eligible(cut, "exclude", 0.0)] == [1.0]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="candidate 1 has score"):
        rejection.select(candidates(1.0, score), rejection.Config(), random.Random(0))


def test_rank_is_branch_then_score() -> None:
    assert rank({"score": 2}) == (1, 2.0)
    assert rank({"score": 2, "branch": 0}) < rank({"score": -5, "branch": 1})
    ordered = best_first(candidates(1.0, 3.0, 2.0), random.Random(0))
    assert [c["text"] for c in ordered] == ["t1", "t2", "t0"]


def test_comparable_lifts_the_upper_branch_no_more_than_it_must() -> None:
    lower, upper = candidates(-2.0, -3.0, branch=0), candidates(-2.5, 4.0)
    assert comparable([*lower, *upper]) == [-2.0, -3.0, -2.5 + 1.5, 4.0 + 1.5]
    assert comparable(candidates(0.5, 4.0)) == [0.5, 4.0]
    assert comparable(lower) == [-2.0, -3.0]
    apart = [*lower, *candidates(0.5)]
    assert comparable(apart) == [-2.0, -3.0, 0.5]
    near = [*lower, *candidates(-1.5)]
    assert comparable(near) == [-2.0, -3.0, -1.0]  # at least 1 above


def test_spread_keeps_both_ends() -> None:
    assert spread(list("abcdefgh"), 3) == ["a", "d", "h"]
    assert spread(list("abcdefgh"), 2) == ["a", "h"]
    assert spread(list("abc"), 3) == spread(list("abc"), 0) == spread(list("abc"), 7) == ["a", "b", "c"]


def test_quantile_and_moments() -> None:
    assert [quantile([4.0, 1, 3, 2], q) for q in (0.0, 0.25, 0.26, 0.5, 0.75, 0.99)] == [1, 1, 2, 2, 3, 4]
    assert moments([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert moments([2.0, 4.0, 9.0]) == (5.0, pytest.approx(math.sqrt(13)))
    assert moments([1.0, 1.5]) == (1.25, pytest.approx(math.sqrt(0.125)))
    assert moments([5.0]) == (5.0, 1.0) and moments([5.0, 5.0]) == (5.0, 1.0)
    for empty in (lambda: quantile([], 0.5), lambda: moments([])):
        with pytest.raises(ValueError, match="no scores to fit to"):
            empty()


def test_filtered() -> None:
    given = candidates(-1.0, 0.0, 1.0, 7.0)
    given[3]["branch"] = 0
    assert texts(filtered.select(given, filtered.Config(), random.Random(0))) == ["t1", "t2"]
    fitted = filtered.fit([0.0, 1.0, 2.0, 3.0], filtered.Config())
    assert fitted.threshold == 2.0
    assert filtered.select(given, fitted, random.Random(0)) == []
    assert filtered.fit([5.0], filtered.Config(threshold=1.5, quantile=0.0)).threshold == 1.5
    given[2]["finish"] = "length"
    assert texts(filtered.select(given, filtered.Config(), random.Random(0))) == ["t1"]


def test_rwr_weights() -> None:
    """Pool 0, 2, 4: mean 2, deviation 2, z = -1, 0, 1; the mean weight of the pool is 1."""
    fitted = rwr.fit([0.0, 2.0, 4.0], rwr.Config(beta=0.5))
    assert (fitted.score_mean, fitted.score_std) == (2.0, 2.0)
    rows = rwr.select(candidates(0.0, 2.0, 4.0), fitted, random.Random(0))
    raw = [math.exp(-2), 1.0, math.exp(2)]
    assert [row["weight"] for row in rows] == pytest.approx([w / sum(raw) * 3 for w in raw])
    assert texts(rows) == ["t0", "t1", "t2"]
    clipped = rwr.Config(beta=0.1, max_weight=20.0)
    assert rwr.weigh(1.0, clipped) == 20.0 and rwr.weigh(1e9, clipped) == 20.0
    assert rwr.weigh(-1.0, clipped) == pytest.approx(math.exp(-10))
    again = rwr.fit([0.0, 2.0, 4.0], fitted)
    assert again == fitted  # fitting twice is fitting once
    assert rwr.select(candidates(1.0, finish="length"), fitted, random.Random(0)) == []


def test_rwr_metrics() -> None:
    import torch

    from methods.batch import batch_of

    mask = torch.tensor([[True, True], [True, False]])
    forwards = {"policy_logp": torch.tensor([[-1.0, -2.0], [-4.0, -9.0]])}
    batch = batch_of(mask, weight=torch.tensor([10.0, 0.5]))
    config = rwr.Config(normaliser=2.0)
    total, metrics = rwr.loss(forwards, batch, config)
    assert float(total) == pytest.approx((30 + 2) / 3)
    found = {name: float(a / b) for name, (a, b) in metrics.items()}
    assert found == pytest.approx({"nll": 7 / 3, "weighted_nll": 32 / 3, "weight": 5.25, "clipped": 0.5})


def test_conditional_writes_scores_into_the_prompt() -> None:
    fitted = conditional.fit([0.0, 2.0, 4.0], conditional.Config())
    assert (fitted.score_mean, fitted.score_std, fitted.best) == (2.0, 2.0, 1.0)
    rows = conditional.select(candidates(0.0, 2.0, 5.0), fitted, random.Random(0))
    assert [row["condition"] for row in rows] == [" <rm_score>: -1.00", " <rm_score>: 0.00", " <rm_score>: 1.50"]
    assert texts(rows) == ["t0", "t1", "t2"]
    assert conditional.target(fitted) == " <rm_score>: 1.00"  # never more than was seen
    rare = conditional.fit([0.0] * 39 + [40.0], conditional.Config())
    assert conditional.target(rare) == " <rm_score>: -0.16"  # nor what one in forty reached: mean 1, deviation sqrt(40)
    assert conditional.target(conditional.Config(goal=1.5)) == " <rm_score>: 1.50"
    coarse = conditional.Config(decimals=0, prefix="|")
    assert [conditional.write(z, coarse) for z in (-0.4, 0.4, -1.2, 2.6)] == ["|0", "|0", "|-1", "|3"]
    assert conditional.write(0.5, conditional.Config()) == " <rm_score>: 0.50"  # always two decimals
    assert conditional.select(candidates(1.0, finish="length"), fitted, random.Random(0)) == []


def test_steerlm_labels() -> None:
    config = steerlm.Config()
    known = {"verbosity": 1.6, "helpfulness": 3.4, "unknown": 2.0, "coherence": None}
    assert steerlm.label(known, config) == "\n<extra_id_2>helpfulness:3,verbosity:2"  # omitted, not zero; order fixed
    assert steerlm.label({"humor": 1.0}, config) == ""
    assert [steerlm.level(x, config) for x in (-1.0, 0.49, 0.5, 2.5, 3.5, 9.0)] == [0, 0, 1, 3, 4, 4]


def test_steerlm_ranks_span_the_range_of_every_prompt_whatever_the_origin_of_the_scores() -> None:
    config = steerlm.Config(attributes=("a", "b"), scale="ranks", prefix="")
    scores = ((-9.0, 1.0), (-8.5, 1.0), (-8.0, 0.0))  # a: 0, 1/2 and 1 of the others beaten; b: 3/4, 3/4 and 0
    given = [{**c, "a": a, "b": b} for c, (a, b) in zip(candidates(0.0, 1.0, 2.0), scores)]
    rows = steerlm.select(given, config, random.Random(0))
    assert [row["condition"] for row in rows] == ["a:0,b:3", "a:2,b:3", "a:4,b:0"]
    shifted = steerlm.Config(attributes=("a",), scale="ranks", prefix="", low=2, high=4)
    assert [row["condition"] for row in steerlm.select(given, shifted, random.Random(0))] == ["a:2", "a:3", "a:4"]
    (alone,) = steerlm.select(given[:1], shifted, random.Random(0))
    assert alone["condition"] == "a:3"  # nothing to compare with: the middle


def test_steerlm_target_asks_for_the_same_attributes_always() -> None:
    assert steerlm.target(steerlm.Config(attributes=("a", "b"), high=9)) == "\n<extra_id_2>a:9,b:9"
    assert steerlm.target(steerlm.Config(attributes=("a", "b"), wanted=(4, 0))) == "\n<extra_id_2>a:4,b:0"


def test_steerlm_condition_of_a_row() -> None:
    config = steerlm.Config(attributes=("a", "b"))
    assert steerlm.condition({"attributes": [3.0, 1.0]}, config) == "\n<extra_id_2>a:3,b:1"
    assert steerlm.condition({"attributes": [3.0, None]}, config) == "\n<extra_id_2>a:3"
    assert steerlm.condition({"attributes": [3.0, math.nan]}, config) == "\n<extra_id_2>a:3"
    assert steerlm.condition({"attributes": {"b": 2}}, config) == "\n<extra_id_2>b:2"
    assert steerlm.condition({"text": "no labels"}, config) == ""
    with pytest.raises(ValueError, match="3 values for the attributes a, b"):
        steerlm.condition({"attributes": [1.0, 2.0, 3.0]}, config)


def test_steerlm_select_labels_samples() -> None:
    config = steerlm.Config(attributes=("helpfulness", "safety"))
    given = candidates(1.0, 2.0, helpfulness=9.0, safety=-9.0)
    given[1]["finish"] = "length"
    rows = steerlm.select(given, config, random.Random(0))
    assert rows == [{"response": "t0", "condition": "\n<extra_id_2>helpfulness:4,safety:0"}]
    levels = steerlm.Config(attributes=("a", "b"))
    rows = steerlm.select(candidates(1.0, attributes=[1.0, 2.0]), levels, random.Random(0))
    assert rows[0]["condition"] == "\n<extra_id_2>a:1,b:2"
    with pytest.raises(ValueError, match="a candidate has none of a, b"):
        steerlm.select(candidates(1.0), levels, random.Random(0))


def test_steerlm_reads_label_texts() -> None:
    assert steerlm.read_label("helpfulness:4, verbosity:0") == {"helpfulness": 4, "verbosity": 0}
    assert steerlm.read_label("a:-1") == {"a": -1}
    for bad in ("helpfulness", "a:b", ":3", "a:3,", ""):
        with pytest.raises(ValueError, match="want name:integer"):
            steerlm.read_label(bad)
