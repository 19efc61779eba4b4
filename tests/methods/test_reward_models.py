"""Reward models: golden tables, signs, and what does not enter the accuracy."""

import math

import pytest
import torch
from problems import problem
from torch import tensor

from methods import reward, reward_attributes, reward_pointwise, reward_ranking
from methods.batch import batch_of
from methods.rows import ranked_lists

close = lambda found, wanted, tol=1e-4: torch.testing.assert_close(
    torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64), rtol=tol, atol=tol
)
number = lambda metric: float(metric[0] / metric[1])
softplus = lambda x: math.log1p(math.exp(x))


def pairs(rewards: list[float], grades: tuple[int, ...] = (), **more):
    """Rows of (chosen, rejected) rewards, one grade a row."""
    rows = len(rewards) // 2
    group = torch.arange(rows).repeat_interleave(2)
    grade = tensor(grades or (0,) * rows)[group]
    batch = batch_of(
        torch.ones(len(rewards), 1, dtype=torch.bool),
        group=group,
        rank=tensor([0, 1] * rows),
        grade=grade,
        count=tensor(rows),
        **more,
    )
    return {"reward": tensor(rewards)}, batch


@pytest.mark.parametrize(
    ("gap", "table"),
    [
        (-2, (2.1269, 2.4259, 2.7338, 3.0486, 4.0181, 5.0067)),
        (-1, (1.3133, 1.5673, 1.8397, 2.1269, 3.0486, 4.0181)),
        (0, (0.6931, 0.8736, 1.0810, 1.3133, 2.1269, 3.0486)),
        (1, (0.3133, 0.4144, 0.5403, 0.6931, 1.3133, 2.1269)),
        (2, (0.1269, 0.1730, 0.2340, 0.3133, 0.6931, 1.3133)),
    ],
)
def test_margin_loss_table(gap: float, table: tuple[float, ...]) -> None:
    """T18: METHODS C.1, columns margin 0, 1/3, 2/3, 1 (small, grades 0 .. 3), 2, 3 (large, grades 2 and 3)."""
    for kind, grade, wanted in zip(("small",) * 4 + ("large",) * 2, (0, 1, 2, 3, 2, 3), table):
        total, _ = reward.loss(*pairs([float(gap), 0.0], (grade,)), reward.Config(margin=kind))
        close(total, wanted)
    assert list(table) == sorted(table)  # a larger margin is a larger loss


def test_margin_gradient() -> None:
    """METHODS 2.1: at gap 0 the gradient goes from -0.5 to -0.9526 as the margin goes from 0 to 3."""
    for margin, wanted in zip((0, 1 / 3, 2 / 3, 1, 2, 3), (-0.5, -0.5826, -0.6608, -0.7311, -0.8808, -0.9526)):
        chosen = torch.zeros(1, requires_grad=True)
        reward.ranking_loss(chosen, torch.zeros(1), torch.full((1,), margin)).sum().backward()
        close(chosen.grad, [wanted])


def test_no_margin_is_bradley_terry() -> None:
    forwards, batch = pairs([1.0, 0.0, -1.0, 0.5], (3, 2))
    total, metrics = reward.loss(forwards, batch, reward.Config(margin="none"))
    close(total, (softplus(-1) + softplus(1.5)) / 2)
    graded = reward.loss(forwards, pairs([1.0, 0.0, -1.0, 0.5], (0, 0))[1], reward.Config(margin="large"))[0]
    close(graded, total)
    wanted = {
        "ranking_loss": float(total),
        "accuracy": 0.5,
        "gap": -0.25,
        "reward_chosen": 0.0,
        "reward_rejected": 0.25,
    }
    assert {name: number(metric) for name, metric in metrics.items()} == pytest.approx(wanted, rel=1e-5)


def test_margin_never_enters_the_accuracy() -> None:
    """T19, T20: a gap of 0.1 under a margin of 3 is right, a tie wrong."""
    forwards, batch = pairs([0.1, 0.0, 2.0, 2.0], (3, 3))
    for kind in ("none", "small", "large"):
        assert number(reward.loss(forwards, batch, reward.Config(margin=kind))[1]["accuracy"]) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_gaps_are_finite(dtype: torch.dtype) -> None:
    """T22: log(sigmoid(-100)) is -inf, and a floor inside the log kills the gradient."""
    chosen = tensor([100.0, -100.0], dtype=dtype, requires_grad=True)
    total = reward.ranking_loss(chosen, torch.zeros(2, dtype=dtype), torch.zeros(2))
    close(total.detach(), [0.0, 100.0])
    total.sum().backward()
    close(chosen.grad.float(), [0.0, -1.0])


def test_chosen_and_rejected_are_told_by_rank_not_by_place() -> None:
    """T21: interchanging the two ranks turns the gap round."""
    forwards, batch = pairs([2.0, 0.0])
    flipped = batch_of(batch.mask, group=batch.group, rank=1 - batch.rank, count=batch.count)
    right, wrong = (reward.loss(forwards, b, reward.Config()) for b in (batch, flipped))
    close([right[0], wrong[0]], [softplus(-2), softplus(2)])
    assert number(right[1]["gap"]) == 2 and number(wrong[1]["gap"]) == -2


def test_a_few_steps_separate_a_separable_set() -> None:
    """T21: gradient descent on the rewards themselves puts chosen above rejected."""
    rewards = torch.zeros(8, requires_grad=True)
    batch = pairs([0.0] * 8, (0, 1, 2, 3))[1]
    for _ in range(50):
        total, metrics = reward.loss({"reward": rewards}, batch, reward.Config(margin="large"))
        (gradient,) = torch.autograd.grad(total, rewards)
        rewards = (rewards - gradient).detach().requires_grad_()
    assert number(metrics["accuracy"]) == 1
    gaps = (rewards[0::2] - rewards[1::2]).tolist()
    assert gaps == sorted(gaps) and gaps[0] > 0  # the stronger the grade, the wider the gap


def test_safety_term_by_hand() -> None:
    """Half the cross-entropy of each labelled response; the third of four has no label."""
    label, known = tensor([[1.0], [0.0], [1.0], [0.0]]), tensor([[True], [True], [False], [True]])
    forwards, batch = pairs([1.0, 0.5, 3.0, -2.0], label=label, label_mask=known)
    plain = reward.loss(forwards, batch, reward.Config())
    total, metrics = reward.loss(forwards, batch, reward.Config(safety_weight=2.0))
    halves = (softplus(-1.0) + softplus(0.5) + softplus(-2.0)) / 2
    close(total - plain[0], 2 * halves / 2)
    close(number(metrics["safety_loss"]), halves / 3)
    assert number(metrics["unsafe_recall"]) == 0.5  # of the unsafe 0.5 and -2, one lies under 0
    low = reward.loss({"reward": tensor([1.0, -0.5, 3.0, -2.0])}, batch, reward.Config(safety_weight=2.0))[1]
    assert number(low["unsafe_recall"]) == 1
    even = reward.loss({"reward": tensor([1.0, 0.0, 3.0, -2.0])}, batch, reward.Config(safety_weight=2.0))[1]
    assert number(even["unsafe_recall"]) == 0.5  # 0 is not found unsafe
    assert "safety_loss" not in plain[1]
    unlabelled = pairs([1.0, 0.5])
    assert "safety_loss" not in reward.loss(*unlabelled, reward.Config(safety_weight=2.0))[1]


def test_safety_labels_of_any_dtype() -> None:
    label, known = tensor([True, False]), tensor([True, True])
    close(reward.safety_loss(tensor([1.0, -2.0]), label, known), [softplus(-1.0) / 2, softplus(-2.0) / 2])


def test_safety_presets() -> None:
    assert reward.Config(**reward.PRESETS["safety"]).safety_weight == 1
    assert reward.Config(**reward.PRESETS["helpfulness"]) == reward.Config()


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="want one shape"):
        reward.ranking_loss(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="want one shape"):
        reward.ranking_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1))


@pytest.mark.parametrize(
    ("group", "rank", "message"),
    [
        ([0, 0, 1], [0, 1, 0], "2 chosen, 1 rejected"),
        ([0, 0, 1, 1], [0, 1, 0, 2], r"found \[2\]"),
        ([0, 0, 1, 1], [0, 0, 1, 1], "2 chosen, 2 rejected"),
        ([0, 0, 0, 0], [0, 0, 1, 1], "one of each in every row"),
        ([0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1], "one of each in every row"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(group: list[int], rank: list[int], message: str) -> None:
    batch = batch_of(torch.ones(len(group), 1, dtype=torch.bool), group=tensor(group), rank=tensor(rank))
    with pytest.raises(ValueError, match=message):
        reward.loss({"reward": torch.zeros(len(group))}, batch, reward.Config())


def rankings(scores: list[list[float]]):
    group = torch.repeat_interleave(torch.arange(len(scores)), tensor([len(row) for row in scores]))
    return batch_of(
        torch.ones(len(group), 1, dtype=torch.bool),
        group=group,
        score=tensor([score for row in scores for score in row]),
        count=tensor(len(scores)),
    )


def test_ranking_of_two_is_bradley_terry() -> None:
    """Ouyang et al., equation 1 at K = 2."""
    rewards = tensor([0.3, -0.4, 1.0, 2.0])
    one = reward_ranking.loss({"reward": rewards}, rankings([[2.0, 1.0], [5.0, 0.0]]), reward_ranking.Config())
    two = reward.loss(*pairs(rewards.tolist()), reward.Config(margin="none"))
    close(one[0], two[0])
    for name in ("accuracy", "gap"):
        close(number(one[1][name]), number(two[1][name]))


def test_ranking_of_four_by_hand() -> None:
    """Six comparisons, two of them void through a tie; a prompt of ties adds nothing but counts."""
    rewards = [1.0, 0.0, 0.5, -1.0, 7.0, 9.0]
    scores = [[3.0, 1.0, 1.0, 0.0], [2.0, 2.0]]
    total, metrics = reward_ranking.loss({"reward": tensor(rewards)}, rankings(scores), reward_ranking.Config())
    gaps = [1.0, 0.5, 2.0, 1.0, 1.5]
    close(total, sum(softplus(-gap) for gap in gaps) / 5 / 2)
    assert number(metrics["comparisons"]) == 2.5 and number(metrics["accuracy"]) == 1
    close(number(metrics["gap"]), 6 / 5)
    close(number(metrics["ranking_loss"]), float(total))
    wrong = reward_ranking.loss({"reward": -tensor(rewards)}, rankings(scores), reward_ranking.Config())
    assert number(wrong[1]["accuracy"]) == 0
    tied = reward_ranking.loss({"reward": torch.zeros(6)}, rankings(scores), reward_ranking.Config())
    assert number(tied[1]["accuracy"]) == 0  # T20


def test_pointwise_by_hand() -> None:
    forwards, batch = pairs([2.0, -1.0, -0.5, 3.0])
    batch = batch_of(batch.mask, group=batch.group, rank=batch.rank, count=reward_pointwise.count(batch))
    total, metrics = reward_pointwise.loss(forwards, batch, reward_pointwise.Config())
    close(total, (softplus(-2) + softplus(-1) + softplus(0.5) + softplus(3)) / 4)
    close([number(metrics["accuracy"]), number(metrics["reward"])], [0.5, 3.5 / 4])
    close(number(metrics["verdict_loss"]), float(total))
    undecided = reward_pointwise.loss({"reward": torch.zeros(4)}, batch, reward_pointwise.Config())[1]
    assert number(undecided["accuracy"]) == 0.5  # 0 is a no: right on the rejected half
    half = reward_pointwise.loss({"reward": tensor([0.0, -1.0, 0.0, -1.0])}, batch, reward_pointwise.Config())[1]
    assert number(half["accuracy"]) == 0.5


def test_pointwise_safety_labels() -> None:
    label, known = tensor([[1.0], [0.0], [0.0], [1.0]]), tensor([[True], [True], [False], [True]])
    forwards, batch = pairs([2.0, 1.0, 5.0, -3.0], label=label, label_mask=known)
    total, metrics = reward_pointwise.loss(forwards, batch, reward_pointwise.Config(verdict="safe"))
    close(float(total) * 2, softplus(-2) + softplus(1) + softplus(3))  # pairs() counts two rows
    close([number(metrics["accuracy"]), float(metrics["verdict_loss"][1])], [1 / 3, 3])
    with pytest.raises(ValueError, match="needs rows with chosen_safe"):
        reward_pointwise.loss(*pairs([1.0, 2.0]), reward_pointwise.Config(verdict="safe"))


@pytest.mark.parametrize("name", ["reward", "reward-attributes"])
def test_metrics_of_low_precision_are_added_in_fp32(name: str) -> None:
    """T44: rewards of 8 significant bits; their sums have more."""
    given = problem(name, rows=64, **({"attributes": tuple("abcde")} if name == "reward-attributes" else {}))
    low = given.forwards["reward"].bfloat16()
    found, wanted = (given.method.loss({"reward": x}, given.batch, given.config)[1] for x in (low, low.float()))
    assert {key: float(total) for key, (total, _) in found.items()} == {
        key: float(total) for key, (total, _) in wanted.items()
    }


def test_attributes_by_hand() -> None:
    config = reward_attributes.Config(attributes=("helpfulness", "verbosity"))
    label = tensor([[4.0, 1.0], [0.0, 2.0]])
    known = tensor([[True, True], [True, False]])
    batch = batch_of(torch.ones(2, 1, dtype=torch.bool), label=label, label_mask=known)
    assert float(reward_attributes.count(batch)) == 3
    batch = batch_of(batch.mask, label=label, label_mask=known, count=reward_attributes.count(batch))
    predicted = tensor([[5.0, 1.4], [-0.5, 99.0]])
    total, metrics = reward_attributes.loss({"reward": predicted}, batch, config)
    close(total, (1 + 0.16 + 0.25) / 3)
    close(number(metrics["squared_error"]), float(total))
    close(number(metrics["error_helpfulness"]), 0.75)
    close(number(metrics["error_verbosity"]), 0.4)
    close([number(metrics["exact_helpfulness"]), number(metrics["exact_verbosity"])], [1.0, 1.0])
    low = tensor([[4.0, 1.0], [0.498046875, 2.0]]).bfloat16()  # 0.998 is 1 in bf16: rounded there it would be no 0
    close(number(reward_attributes.loss({"reward": low}, batch, config)[1]["exact_helpfulness"]), 1.0)
    off = reward_attributes.loss({"reward": tensor([[3.4, 1.6], [0.5, 0.0]])}, batch, config)[1]
    close([number(off["exact_helpfulness"]), number(off["exact_verbosity"])], [0.0, 0.0])


@pytest.mark.parametrize("change", ["reward", "label"])
def test_attributes_need_one_head_and_label_each(change: str) -> None:
    given = problem("reward-attributes")
    forwards, batch = dict(given.forwards), given.batch
    if change == "reward":
        forwards["reward"] = forwards["reward"][:, :4]
    else:
        batch = batch_of(batch.mask, label=batch.label[:, :4])
    with pytest.raises(ValueError, match=r"reward-attributes: want .* for helpfulness"):
        reward_attributes.loss(forwards, batch, given.config)


def test_equal_keys_keep_their_order_in_long_lists() -> None:
    """More than a sort takes at once: without `stable` the order of equals is the sort's own."""
    index, present = ranked_lists(torch.zeros(500, dtype=torch.int64), torch.zeros(500))
    assert present.all() and torch.equal(index[0], torch.arange(500))
    group = torch.arange(500) % 2
    index, _ = ranked_lists(group, torch.zeros(500))
    assert torch.equal(index, torch.arange(500).view(-1, 2).t())
