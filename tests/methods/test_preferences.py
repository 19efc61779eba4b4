"""DPO and its relatives, RSO's losses, the curriculum, RRHF and PRO: goldens and identities."""

import dataclasses
import math
import random
from collections import Counter

import pytest
import torch
from problems import problem
from torch import tensor

from methods import curriculum_dpo, dpo, pro, rrhf, rso
from methods.batch import batch_of

close = lambda found, wanted, tol=1e-4: torch.testing.assert_close(
    torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64), rtol=tol, atol=tol
)
number = lambda metric: float(metric[0] / metric[1])


def pair(policy: tuple[float, float], reference: tuple[float, float], lengths: tuple[int, int] = (5, 4), **more):
    """One pair whose responses have these summed log-probs, spread evenly over their tokens."""
    mask = torch.arange(max(lengths)) < tensor(lengths).unsqueeze(1)
    spread = lambda sums: tensor(sums).unsqueeze(1) / tensor(lengths).unsqueeze(1) * torch.ones_like(mask)
    batch = batch_of(mask, group=tensor([0, 0]), rank=tensor([0, 1]), count=tensor(1.0), **more)
    return {"policy_logp": spread(policy), "reference_logp": spread(reference)}, batch


GOLDEN = {
    "sigmoid": 0.598139,
    "cdpo": 0.618139,
    "robust": 0.573139,
    "ipo-sum": 9.0,
    "ipo": 20.7025,
    "hinge": 0.8,
    "sigmoid-lengthnorm": 0.670900,
}


@pytest.mark.parametrize(("loss", "wanted"), GOLDEN.items())
def test_dpo_family_goldens(loss: str, wanted: float) -> None:
    """T64, T66, T67: METHODS 7.1: log-probs -10 and -12, reference -11 and -11, lengths 5 and 4, beta 0.1."""
    config = dpo.Config(loss=loss, label_smoothing=0.1 if loss in ("cdpo", "robust") else 0.0)
    total, metrics = dpo.loss(*pair((-10.0, -12.0), (-11.0, -11.0)), config)
    close(total, wanted, 1e-5)
    close(number(metrics["preference_loss"]), wanted, 1e-5)


@pytest.mark.parametrize(
    ("loss", "wanted"), {**{k: math.log(2) for k in GOLDEN}, "ipo": 25, "ipo-sum": 25, "hinge": 1}.items()
)
def test_dpo_family_at_the_reference(loss: str, wanted: float) -> None:
    """T65: a policy that is its reference has h = 0."""
    config = dpo.Config(loss=loss, label_smoothing=0.1 if loss in ("cdpo", "robust") else 0.0)
    total, metrics = dpo.loss(*pair((-3.0, -9.0), (-3.0, -9.0)), config)
    close(total, wanted)
    assert number(metrics["accuracy"]) == 0 and number(metrics["margin"]) == 0


def test_dpo_gradient() -> None:
    """METHODS 7.1: -0.045017 on the chosen response's log-prob, the opposite on the rejected one's."""
    forwards, batch = pair((-10.0, -12.0), (-11.0, -11.0))
    forwards["policy_logp"].requires_grad_()
    dpo.loss(forwards, batch, dpo.Config())[0].backward()
    close(forwards["policy_logp"].grad[0], [-0.045017] * 5, 1e-5)
    close(forwards["policy_logp"].grad[1], [0.045017] * 4 + [0], 1e-5)


def test_cdpo_is_least_at_the_odds_of_its_labels() -> None:
    """METHODS 7.1: beta h = ln((1 - e) / e), 2.1972 at e = 0.1."""
    h = torch.linspace(0, 40, 4001)
    best = h[dpo.preference_loss(h, "cdpo", 0.1, 0.1).argmin()]
    close(0.1 * best, 2.1972, 1e-3)
    assert dpo.preference_loss(h, "robust", 0.1, 0.1).argmin() == 4000  # unbounded below


def test_dpo_metrics_apply_beta_once() -> None:
    metrics = dpo.loss(*pair((-10.0, -12.0), (-11.0, -11.0)), dpo.Config(beta=0.5))[1]
    wanted = {
        "accuracy": 1.0,
        "margin": 1.0,
        "reward_chosen": 0.5,
        "reward_rejected": -0.5,
        "logp_chosen": -10.0,
        "logp_rejected": -12.0,
        "length_chosen": 5.0,
        "length_rejected": 4.0,
    }
    assert {name: number(metrics[name]) for name in wanted} == pytest.approx(wanted)
    assert metrics.keys() == {*wanted, "preference_loss"}


def test_implicit_reward_is_the_sum_of_log_ratios() -> None:
    forwards, batch = pair((-10.0, -12.0), (-11.0, -11.0))
    close(dpo.log_ratios(forwards, batch.mask), [1.0, -1.0])
    close(dpo.log_ratios(forwards, batch.mask, averaged=True), [0.2, -0.25])


def test_dpo_presets() -> None:
    for name in ("cdpo", "robust"):
        assert dpo.Config(**dpo.PRESETS[name]).label_smoothing == 0.1


def test_rso_losses() -> None:
    """sigmoid-norm is DPO and hinge-norm its hinge under gamma; hinge has no reference."""
    given = pair((-10.0, -12.0), (-11.0, -14.0))
    loss = lambda **settings: rso.loss(*given, rso.Config(**settings))[0]
    close(loss(), dpo.loss(*given, dpo.Config(beta=0.05))[0])
    close(loss(), math.log1p(math.exp(0.05)))  # h = 1 - 2 = -1
    close(loss(loss="hinge-norm", gamma=0.5), 1.5)
    close(loss(loss="hinge", gamma=0.25), 0.5)  # 1 - 0.25 * 2, the reference unread
    close(loss(loss="hinge", gamma=0.7), 0.0)
    metrics = rso.loss(*given, rso.Config(loss="hinge", gamma=0.25))[1]
    assert number(metrics["preference_loss"]) == 0.5
    assert number(metrics["margin"]) == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("direction", "progress", "easy", "hard"),
    [
        ("easy-to-hard", 0.0, 2.0, 0.0),
        ("easy-to-hard", 0.25, 1.5, 0.5),
        ("easy-to-hard", 1.0, 0.0, 2.0),
        ("hard-to-easy", 0.25, 0.5, 1.5),
        ("mixed", 0.25, 1.0, 1.0),
    ],
)
def test_curriculum_weights(direction: str, progress: float, easy: float, hard: float) -> None:
    """At the reference every pair's loss is ln 2, so the loss is ln 2 times the pair's weight."""
    config = curriculum_dpo.Config(direction=direction)
    for grades, wanted in (((2.0, 2.0), easy), ((3.0, 3.0), easy), ((1.0, 1.0), hard), ((0.0, 0.0), hard)):
        given = pair((-3.0, -9.0), (-3.0, -9.0), grade=tensor(grades), progress=progress)
        total, metrics = curriculum_dpo.loss(*given, config)
        close(total, wanted * math.log(2))
        close(number(metrics["preference_loss"]), math.log(2))
        if wanted:
            assert number(metrics["hard_share"]) == (grades[0] < 2)
        close(curriculum_dpo.loss(*given, dataclasses.replace(config, by="order"))[0], math.log(2))


def test_curriculum_weights_allow_for_unequal_pools() -> None:
    """A quarter of the rows hard: drawn half of the time at progress 0.5, so they weigh 2 and the easy ones 2/3."""
    config = curriculum_dpo.Config(hard_share=0.25)
    at = lambda grade: curriculum_dpo.loss(
        *pair((-3.0, -9.0), (-3.0, -9.0), grade=tensor([grade, grade]), progress=0.5), config
    )[0]
    close([at(3.0), at(1.0)], [2 / 3 * math.log(2), 2 * math.log(2)])
    assert curriculum_dpo.hard_probability(0.9, dataclasses.replace(config, direction="mixed")) == 0.25


def test_curriculum_metrics_are_dpos() -> None:
    given = problem("curriculum-dpo", seed=1)
    metrics = given.loss()[1]
    wanted = dpo.pair_metrics(given.forwards, given.batch, given.config.beta)
    assert metrics.keys() == {*wanted, "preference_loss", "hard_share"}
    assert all(torch.equal(metrics[name][0], wanted[name][0]) for name in wanted)


ROWS = [{"grade": grade} for grade in (3, 1, 2, 0, None, 3)]  # easy 0, 2, 5; hard 1, 3, 4


def test_curriculum_order_moves_from_easy_to_hard() -> None:
    config = curriculum_dpo.Config()
    drawn = curriculum_dpo.order(ROWS, 3000, config, random.Random(0))
    hard = [i in (1, 3, 4) for i in drawn]
    assert not hard[0] and hard[-1]
    for third, wanted in enumerate((1 / 6, 1 / 2, 5 / 6)):
        assert sum(hard[third * 1000 : third * 1000 + 1000]) / 1000 == pytest.approx(wanted, abs=0.05)
    back = curriculum_dpo.order(ROWS, 100, dataclasses.replace(config, direction="hard-to-easy"), random.Random(0))
    assert back[0] in (1, 3, 4) and back[-1] in (0, 2, 5)
    assert curriculum_dpo.order(ROWS, 1, config, random.Random(0))[0] in (0, 2, 5)


def test_curriculum_order_ends_where_it_should() -> None:
    """Of three draws the first is easy, the last hard, the middle one either; ungraded pairs are hard."""
    config = curriculum_dpo.Config()
    drawn = [[i in (1, 3, 4) for i in curriculum_dpo.order(ROWS, 3, config, random.Random(s))] for s in range(300)]
    assert not any(first for first, _, _ in drawn) and all(last for _, _, last in drawn)
    assert 110 < sum(middle for _, middle, _ in drawn) < 190
    assert all(curriculum_dpo.order(ROWS, 2, config, random.Random(s))[1] in (1, 3, 4) for s in range(30))
    ungraded = [{"grade": None}, {"grade": 1}]
    assert curriculum_dpo.order(ungraded, 2, curriculum_dpo.Config(easy_grade=1.0), random.Random(0)) == [1, 0]


def test_curriculum_order_cycles_each_pool_without_replacement_and_repeats_itself() -> None:
    """Resume-safe: the same rows and seed give the same order."""
    orders = [curriculum_dpo.order(ROWS, 120, curriculum_dpo.Config(), random.Random(5)) for _ in range(2)]
    assert orders[0] == orders[1]
    for pool in ((0, 2, 5), (1, 3, 4)):
        seen = [i for i in orders[0] if i in pool]
        rounds = [tuple(seen[i : i + 3]) for i in range(0, len(seen) - 2, 3)]
        assert all(sorted(r) == list(pool) for r in rounds) and len(set(rounds)) > 1


@pytest.mark.parametrize("grade", [3, 0])
def test_curriculum_needs_both_kinds(grade: int) -> None:
    with pytest.raises(ValueError, match=r"curriculum-dpo: \d easy and \d hard pairs"):
        curriculum_dpo.order([{"grade": grade}] * 3, 5, curriculum_dpo.Config(), random.Random(0))


def ranking(logps: list[float], scores: list[float], lengths: list[int] | None = None):
    """One ranking whose responses have these MEAN log-probs."""
    lengths = lengths or [2] * len(logps)
    mask = torch.arange(max(lengths)) < tensor(lengths).unsqueeze(1)
    batch = batch_of(mask, group=torch.zeros(len(logps), dtype=torch.int64), score=tensor(scores), count=tensor(1.0))
    return {"policy_logp": tensor(logps).unsqueeze(1) * torch.ones_like(mask)}, batch


def test_rrhf_golden() -> None:
    """METHODS 7.3: means -1 and -0.5, rewards 1 and 0: the ranking term is 0.5; the best response costs its SUM."""
    total, metrics = rrhf.loss(*ranking([-1.0, -0.5], [1.0, 0.0], [3, 7]), rrhf.Config())
    close(number(metrics["rank_loss"]), 0.5)
    close(number(metrics["sft_loss"]), 3.0)
    close(total, 3.5)
    assert number(metrics["accuracy"]) == 0
    close(rrhf.loss(*ranking([-1.0, -0.5], [1.0, 0.0], [3, 7]), rrhf.Config(rank_coef=2.0, sft_coef=0.5))[0], 2.5)


def test_rrhf_normalises_by_each_responses_own_length() -> None:
    """T68: lengths 2 and 3 in a batch padded to 3: the means are -1 and -2, not sums over 3."""
    _, metrics = rrhf.loss(*ranking([-1.0, -2.0], [0.0, 1.0], [2, 3]), rrhf.Config())
    close(number(metrics["rank_loss"]), 1.0)


def test_rrhf_has_no_margin_and_ties_make_no_pair() -> None:
    right = rrhf.loss(*ranking([-1.0, -1.01], [1.0, 0.0]), rrhf.Config())[1]
    assert number(right["rank_loss"]) == 0 and number(right["accuracy"]) == 1
    equal = rrhf.loss(*ranking([-1.0, -1.0], [1.0, 0.0]), rrhf.Config())[1]
    assert number(equal["accuracy"]) == 0  # T20
    tied = rrhf.loss(*ranking([-1.0, -3.0], [1.0, 1.0]), rrhf.Config())[1]
    assert number(tied["rank_loss"]) == 0 and float(tied["accuracy"][1]) == 0
    close(number(tied["sft_loss"]), (2 + 6) / 2)  # both are best: their mean is imitated


@pytest.mark.parametrize(
    ("logps", "scores", "wanted"),
    [
        ([-1.0, -2.0], [2.0, 1.0], 0.31326),
        ([-1.0, -1.5, -2.0], [3.0, 2.0, 0.0], 2.02372),
        ([-1.0, -2.0], [1.0, 1.0], math.log(2)),
    ],
)
def test_pro_goldens(logps: list[float], scores: list[float], wanted: float) -> None:
    """METHODS 7.4."""
    total, metrics = pro.loss(*ranking(logps, scores), pro.Config(sft_coef=0.0))
    close([float(total), number(metrics["rank_loss"])], [wanted, wanted])


def test_pro_gives_a_loss_to_every_row() -> None:
    """Two rows of the golden numbers above, the second without a third response."""
    logps = tensor([[-1.0, -1.5, -2.0], [-1.0, -2.0, 9.0]])
    scores = tensor([[3.0, 2.0, 0.0], [1.0, 1.0, 7.0]])
    present = tensor([[True, True, True], [True, True, False]])
    close(pro.ranking_loss(logps, scores, present), [2.02372, math.log(2)])


def test_pro_imitation_term() -> None:
    """0.05 (n - 1)^2 times the best response's summed loss: n 3, sum 4."""
    with_it, metrics = pro.loss(*ranking([-2.0, -1.0, -3.0], [5.0, 1.0, 0.0]), pro.Config())
    without, _ = pro.loss(*ranking([-2.0, -1.0, -3.0], [5.0, 1.0, 0.0]), pro.Config(sft_coef=0.0))
    close(with_it - without, 0.05 * 4 * 4)
    assert number(metrics["sft_loss"]) == 4


def test_pro_sorts_its_rows() -> None:
    """T69: unsorted rows would give negative sharpness."""
    sorted_ = pro.loss(*ranking([-1.0, -1.5, -2.0], [3.0, 2.0, 0.0]), pro.Config())[0]
    close(pro.loss(*ranking([-1.5, -2.0, -1.0], [2.0, 0.0, 3.0]), pro.Config())[0], sorted_)


def test_pro_is_finite_for_huge_log_probs() -> None:
    """T69: exp(1000) without logsumexp."""
    forwards, batch = ranking([-1000.0, 1000.0], [50.0, 0.0])
    forwards["policy_logp"].requires_grad_()
    total, _ = pro.loss(forwards, batch, pro.Config(sft_coef=0.0))
    close(total.detach(), 100_000.0)
    total.backward()
    assert forwards["policy_logp"].grad.isfinite().all()


def test_pro_of_one_response_is_nothing_but_finite() -> None:
    forwards, batch = ranking([-1.0], [3.0])
    forwards["policy_logp"].requires_grad_()
    total, _ = pro.loss(forwards, batch, pro.Config())
    total.backward()
    assert float(total.detach()) == 0 and not forwards["policy_logp"].grad.any()


def candidates(*scores: float, **more) -> list[dict]:
    return [{"text": f"t{i}", "score": s, "branch": 1, "finish": "eos", **more} for i, s in enumerate(scores)]


@pytest.mark.parametrize("method", [dpo, curriculum_dpo, rrhf, pro])
def test_equal_scores_make_no_row(method) -> None:
    assert method.select(candidates(1.0, 1.0, 1.0), method.Config(), random.Random(0)) == []
    assert method.select(candidates(1.0), method.Config(), random.Random(0)) == []
    assert method.select([], method.Config(), random.Random(0)) == []


def test_dpo_select_takes_best_and_worst() -> None:
    given = candidates(1.0, 3.0, 2.0, 0.0)
    assert dpo.select(given, dpo.Config(), random.Random(0)) == [{"chosen": "t1", "rejected": "t3", "grade": 0}]
    given[3]["branch"], given[0]["branch"] = 1, 0  # t0 lies under the safety threshold: last, whatever its score
    assert dpo.select(given, dpo.Config(), random.Random(0))[0]["rejected"] == "t0"
    seen = {dpo.select(candidates(1.0, 1.0, 0.0), dpo.Config(), random.Random(i))[0]["chosen"] for i in range(20)}
    assert seen == {"t0", "t1"}  # T72
    two = dpo.select(candidates(0.0, 1.0), dpo.Config(), random.Random(0))
    assert two == [{"chosen": "t1", "rejected": "t0", "grade": 0}]


def test_curriculum_select_makes_an_easy_and_a_hard_pair() -> None:
    found = curriculum_dpo.select(candidates(1.0, 3.0, 2.0, 0.0), curriculum_dpo.Config(), random.Random(0))
    assert found == [
        {"chosen": "t1", "rejected": "t3", "grade": 3},
        {"chosen": "t1", "rejected": "t2", "grade": 1},
    ]
    two = curriculum_dpo.select(candidates(1.0, 3.0), curriculum_dpo.Config(), random.Random(0))
    assert [(row["chosen"], row["rejected"], row["grade"]) for row in two] == [("t1", "t0", 3), ("t1", "t0", 1)]


@pytest.mark.parametrize("method", [rrhf, pro])
def test_ranking_select_sorts_and_thins(method) -> None:
    found = method.select(candidates(1.0, 3.0, 2.0, 0.0), method.Config(size=3), random.Random(0))
    assert found == [{"responses": ["t1", "t2", "t3"], "scores": [3.0, 2.0, 0.0]}]
    assert method.select(candidates(1.0, 3.0, 3.0), method.Config(), random.Random(0))[0]["scores"] == [3.0, 3.0, 1.0]
    (everything,) = method.select(candidates(*map(float, range(9))), method.Config(size=0), random.Random(0))
    assert everything["scores"] == sorted(map(float, range(9)), reverse=True)


METHODS_WITH_SELECT = [dpo, curriculum_dpo, rrhf, pro, rso]


@pytest.mark.parametrize("method", METHODS_WITH_SELECT)
def test_truncated_responses_follow_the_setting(method) -> None:
    given = candidates(1.0, 2.0, 9.0)
    given[2]["finish"] = "length"
    texts = lambda rows: {
        t for row in rows for t in [row.get("chosen"), row.get("rejected"), *row.get("responses", [])]
    }
    take = lambda **settings: method.select(given, method.Config(**settings), random.Random(1))
    assert "t2" not in texts(take())
    assert take(truncated="keep") and "t2" in texts(take(truncated="keep"))
    (first, *_) = take(truncated="penalise", penalty=100.0)
    assert first.get("chosen", first.get("responses", [""])[0]) != "t2"


def test_rso_draws_follow_the_target_whatever_the_order() -> None:
    """T70, T71: METHODS 7.5: beta 0.5, rewards (0, .5, 1, 1.5): first draw .032, .087, .237, .644, also when sorted."""
    rewards = [0.0, 0.5, 1.0, 1.5]
    wanted = torch.softmax(tensor(rewards) / 0.5, 0).tolist()
    close(wanted, [0.032, 0.087, 0.237, 0.644], 1e-3)
    n = 8000
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        rng = random.Random(7)
        seen = Counter(order[rso.draw([rewards[i] for i in order], 1, 0.5, rng)[0]] for _ in range(n))
        chi2 = sum((seen[i] - n * wanted[i]) ** 2 / (n * wanted[i]) for i in range(4))
        assert chi2 < 16.27  # 99.9 % of a chi-square with 3 degrees of freedom


def test_rso_limits() -> None:
    """T70: beta 0 takes the best, equals at random; a large beta draws evenly; nothing is drawn twice."""
    assert rso.draw([1.0, 5.0, 3.0, 4.0], 3, 0.0, random.Random(0)) == [1, 3, 2]
    assert {rso.draw([1.0, 1.0, 0.0], 1, 0.0, random.Random(i))[0] for i in range(20)} == {0, 1}
    seen = Counter(rso.draw([0.0, 100.0], 1, 1e6, random.Random(i))[0] for i in range(2000))
    assert abs(seen[0] - 1000) < 150
    assert sorted(rso.draw([1.0, 2.0, 3.0], 9, 0.5, random.Random(0))) == [0, 1, 2]
    assert rso.draw([], 4, 0.5, random.Random(0)) == []
    assert sorted(rso.draw([0.0, 1e6, -1e6], 2, 0.01, random.Random(0))) == [0, 1]


def test_rso_pairs() -> None:
    rewards = [0.0, 1.0, 2.0, 3.0, 3.0]
    assert rso.first_round([0, 1, 3, 2], rewards) == [(1, 0), (3, 2)]
    assert rso.first_round([0, 1, 2], rewards) == [(1, 0)]
    assert rso.first_round([3, 4], rewards) == []
    assert rso.tournament([0, 1, 3, 2], rewards) == [(1, 0), (3, 2), (3, 1)]
    assert rso.tournament([0, 1, 2], rewards) == [(1, 0), (2, 1)]
    assert rso.tournament([3, 4, 0, 1], rewards) == [(1, 0), (3, 1)]
    assert rso.tournament([2], rewards) == []


@pytest.mark.parametrize(("pairs", "number_of_pairs"), [("first-round", 4), ("tournament", 7)])
def test_rso_select(pairs: str, number_of_pairs: int) -> None:
    given = candidates(*map(float, range(20)))
    rows = rso.select(given, rso.Config(pairs=pairs), random.Random(3))
    assert len(rows) == number_of_pairs
    score = {c["text"]: c["score"] for c in given}
    assert all(score[row["chosen"]] > score[row["rejected"]] and row["grade"] == 0 for row in rows)
    best = rso.select(given, rso.Config(beta=0.0, accepted=4), random.Random(3))
    assert {t for row in best for t in (row["chosen"], row["rejected"])} == {"t16", "t17", "t18", "t19"}
    couples = {
        frozenset((r["chosen"], r["rejected"]))
        for i in range(30)
        for r in rso.select(given, rso.Config(beta=0.0, accepted=4), random.Random(i))
    }
    assert len(couples) == 6  # neighbours in the draw would always be 19-18 and 17-16


def test_rso_lifts_the_upper_branch() -> None:
    """The safe response beats the unsafe one although its raw score is lower."""
    given = candidates(-3.0, -2.0)
    given[1]["branch"] = 0
    rows = rso.select(given, rso.Config(beta=0.0, accepted=2), random.Random(0))
    assert rows == [{"chosen": "t0", "rejected": "t1", "grade": 0}]
