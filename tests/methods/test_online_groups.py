"""ReMax, RLOO and GRPO: their goldens and the cases in which they are one another."""

import dataclasses
import math

import pytest
import torch
from problems import problem, rollout
from torch import tensor

from methods import grpo, remax, rloo
from methods.batch import Rollout, batch_of
from methods.groups import group_means, group_sizes, group_sums

close = lambda found, wanted, tol=1e-4: torch.testing.assert_close(
    torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64), rtol=tol, atol=tol
)
number = lambda metric: float(metric[0] / metric[1])


def responses(score: list[float], group: list[int], width: int = 3, **more: torch.Tensor) -> Rollout:
    mask = torch.ones(len(score), width, dtype=torch.bool)
    zero = torch.zeros(len(score), width)
    given = {"old_logp": zero, "reference_logp": zero, "finished": mask[:, 0], **more}
    return Rollout(mask=mask, score=tensor(score), group=tensor(group), **given)


def test_group_statistics() -> None:
    group = tensor([7, 2, 7, 7])
    assert group_sizes(group).tolist() == [3, 1, 3, 3]
    assert group_sums(tensor([1, 5, 2, 6]), group).tolist() == [9, 5, 9, 9]
    assert group_means(tensor([1.0, 5, 2, 6]), group).tolist() == [3, 5, 3, 3]


@pytest.mark.parametrize("method", [rloo, grpo])
def test_a_group_of_one_is_refused(method) -> None:
    with pytest.raises(ValueError, match=r"prompt 4 has one response: want k of at least 2"):
        method.signal(responses([1.0, 2, 3], [1, 4, 1]), method.Config(), method.initial_state(method.Config()))


def test_remax_golden() -> None:
    """T74: METHODS C.4: gamma 0.9, n 3, gain 2: the discount reaches the last token, too."""
    config = remax.Config(gamma=0.9)
    given = responses([5.0], [0], baseline_score=tensor([3.0]))
    found, state, metrics = remax.signal(given, config, remax.initial_state(config))
    close(found["advantages"], [[1.458, 1.62, 1.8]])
    assert state == {"iterations": 1.0} and number(metrics["no_gain"]) == 0
    assert number(metrics["baseline_score"]) == 3


def test_remax_kl_is_of_one_step() -> None:
    """T74: each token pays for itself, not for those after it."""
    k1 = tensor([[0.2, -0.5, 0.1]])
    given = responses([5.0], [0], old_logp=k1, baseline_score=tensor([5.0]))
    found, _, metrics = remax.signal(given, remax.Config(kl_coef=0.1), {"iterations": 3.0})
    close(found["advantages"], -0.1 * k1)
    close(found["rewards"], -0.1 * k1 + tensor([[0, 0, 5.0]]))
    assert number(metrics["no_gain"]) == 1


def test_remax_gain_is_clipped() -> None:
    given = responses([9.0, -9.0], [0, 1], baseline_score=torch.zeros(2))
    found, _, _ = remax.signal(given, remax.Config(), {"iterations": 0.0})
    assert found["advantages"].tolist() == [[5, 5, 5], [-5, -5, -5]]
    found, _, _ = remax.signal(given, remax.Config(clip=0.0), {"iterations": 0.0})
    assert found["advantages"].tolist() == [[9, 9, 9], [-9, -9, -9]]


@pytest.mark.parametrize(
    ("rule", "gains"),
    [("none", [1.0, -7.0]), ("minimum", [3.0, 0.0]), ("replace", [3.0, 3.0]), ("subtract", [2.0, -6.0])],
)
def test_remax_holds_the_greedy_response_to_the_same_rule(rule: str, gains: list[float]) -> None:
    """METHODS 7.7: scores 2 and 2 (for the minimum: 4 and 1) against greedy 1 and 9, both of which were cut."""
    cut = torch.zeros(2, dtype=torch.bool)
    given = responses([2.0, 2.0], [0, 1], baseline_score=tensor([1.0, 9.0]), baseline_finished=cut)
    if rule == "minimum":
        given = responses([4.0, 1.0], [0, 1], baseline_score=tensor([1.0, 9.0]), baseline_finished=cut)
    found = remax.signal(given, remax.Config(missing_eos=rule, clip=0.0, kl_coef=0.0), {"iterations": 0.0})[0]
    close(found["advantages"][:, -1], gains)


def test_remax_needs_the_greedy_score() -> None:
    with pytest.raises(ValueError, match="no baseline_score"):
        remax.signal(dataclasses.replace(rollout(), baseline_score=None), remax.Config(), {"iterations": 0.0})


def test_remax_loss_by_hand() -> None:
    mask = tensor([[True, True, False]])
    forwards = {"policy_logp": tensor([[-1.0, -2.0, -7.0]]), "advantages": tensor([[2.0, 3.0, 9.0]])}
    total, metrics = remax.loss(forwards, batch_of(mask), remax.Config())
    close(total, (2 + 6) / 2)
    close(number(metrics["policy_loss"]), 4.0)


@pytest.mark.parametrize("method", [remax, rloo, grpo])
def test_truncated_responses_get_the_batchs_minimum(method) -> None:
    finished = tensor([True, True, True, False])
    given = responses([1.0, 2, 0.5, 9], [0, 0, 1, 1], finished=finished, baseline_score=torch.zeros(4))
    found, _, metrics = method.signal(given, method.Config(), {"iterations": 0.0})
    close(found["rewards"].sum(-1), [1, 2, 0.5, 0.5])
    assert number(metrics["missing_eos"]) == 0.25


def test_rloo_by_hand() -> None:
    """Scores 1, 2, 6: each against the mean of the two others; the KL of 0.3 and 0.9 nats is charged a response."""
    given = responses([1.0, 2, 6], [0, 0, 0])
    config = rloo.Config()
    found, state, _ = rloo.signal(given, config, rloo.initial_state(config))
    close(found["advantages"][:, 0], [1 - 4, 2 - 3.5, 6 - 1.5])
    assert torch.equal(found["advantages"][:, 0], found["advantages"][:, 2]) and state["iterations"] == 1
    kl = responses([1.0, 1.0], [0, 0], old_logp=tensor([[0.1] * 3, [0.3] * 3]))
    close(rloo.signal(kl, rloo.Config(kl_coef=0.5), state)[0]["advantages"][:, 0], [0.5 * 0.6, -0.5 * 0.6])


def test_rloo_whitens_over_the_batch() -> None:
    given = responses([1.0, 2, 6, 0, 0, 3], [0, 0, 0, 1, 1, 1])
    found, _, _ = rloo.signal(given, rloo.Config(whiten_advantages=True), {"iterations": 0.0})
    close([found["advantages"][:, 0].mean(), found["advantages"][:, 0].std(correction=0)], [0, 1])


def test_rloo_first_step_is_reinforce() -> None:
    given = problem("rloo", seed=3)
    logp = given.forwards["old_logp"].clone().requires_grad_()
    total, metrics = rloo.loss({**given.forwards, "policy_logp": logp}, given.batch, given.config)
    total.backward()
    mask = given.batch.mask
    close(logp.grad, torch.where(mask, -given.forwards["advantages"], 0.0) / mask.shape[0])
    assert number(metrics["ratio"]) == 1 and number(metrics["drift"]) == 0 and number(metrics["clip_fraction"]) == 0


def test_rloo_ratio_is_of_the_whole_response() -> None:
    """Two tokens at ratio 1.1 make 1.21, which 0.2 clips; a token ratio would pass."""
    logp = torch.full((1, 2), math.log(1.1))
    forwards = {"policy_logp": logp, "old_logp": torch.zeros(1, 2), "advantages": torch.ones(1, 2)}
    batch = batch_of(torch.ones(1, 2, dtype=torch.bool), count=tensor(1.0))
    total, metrics = rloo.loss(forwards, batch, rloo.Config())
    close(total, -1.2)
    close([number(metrics["ratio"]), number(metrics["clip_fraction"])], [1.21, 1.0])
    close(number(metrics["drift"]), math.log(1.1))
    close(rloo.loss(forwards, batch, rloo.Config(clip=0.0))[0], -1.21)


def test_grpo_by_hand() -> None:
    """Scores 1, 2, 6: mean 3, unbiased deviation sqrt(7)."""
    found, state, metrics = grpo.signal(responses([1.0, 2, 6], [0, 0, 0]), grpo.Config(), {"iterations": 0.0})
    close(found["advantages"][:, 1], [-2 / 2.645851, -1 / 2.645851, 3 / 2.645851])
    plain = grpo.signal(responses([1.0, 2, 6], [0, 0, 0]), grpo.Config(scale="none"), state)
    close(plain[0]["advantages"][:, 1], [-2, -1, 3])
    assert plain[1] == {"iterations": 2.0} and number(metrics["no_gain"]) == 0


def test_grpo_equal_scores_teach_nothing() -> None:
    found, _, metrics = grpo.signal(responses([2.0, 2, 1, 3], [0, 0, 1, 1]), grpo.Config(), {"iterations": 0.0})
    assert not found["advantages"][:2].any() and found["advantages"][2:].all()
    assert number(metrics["no_gain"]) == 0.5


def test_grpo_without_scale_is_rloo_up_to_the_group_size() -> None:
    """Dr. GRPO: the mean with oneself in it shrinks RLOO's advantage by (k - 1) / k."""
    given = rollout(seed=5, k=4)
    one = grpo.signal(given, grpo.Config(scale="none"), {"iterations": 0.0})[0]["advantages"]
    two = rloo.signal(given, rloo.Config(kl_coef=0.0), {"iterations": 0.0})[0]["advantages"]
    close(one, two * 3 / 4)


def test_grpo_loss_by_hand() -> None:
    """Responses of 1 and 3 tokens: each weighs the same, whatever its length; length_constant counts tokens instead."""
    mask = tensor([[1, 0, 0], [1, 1, 1]]).bool()
    zero = torch.zeros(2, 3)
    forwards = {
        "policy_logp": zero,
        "old_logp": zero,
        "reference_logp": zero,
        "advantages": tensor([[1.0] * 3, [2.0] * 3]),
    }
    total, metrics = grpo.loss(forwards, batch_of(mask, count=tensor(2.0)), grpo.Config())
    close(total, -(1 + 2) / 2)
    close(
        grpo.loss(forwards, batch_of(mask, count=tensor(2.0)), grpo.Config(length_constant=4))[0], -(1 / 4 + 6 / 4) / 2
    )
    assert number(metrics["ratio"]) == 1 and number(metrics["kl_loss"]) == 0 and number(metrics["drift"]) == 0
    close(number(metrics["policy_loss"]), -1.5)
    moved = {**forwards, "policy_logp": torch.full((2, 3), 0.5)}  # ratio 1.65: clipped; k3 = e^-0.5 - 0.5
    total, metrics = grpo.loss(moved, batch_of(mask, count=tensor(2.0)), grpo.Config(kl_coef=0.1))
    k3 = math.exp(-0.5) - 0.5
    close(total, -1.2 * 1.5 + 0.1 * k3)
    close([number(metrics["kl_loss"]), number(metrics["clip_fraction"]), number(metrics["drift"])], [k3, 1, 0.5])


def test_metrics_of_a_step() -> None:
    """Ratios 1.5, 0.5 and 1.1 on three tokens of two responses: one clipped (advantage 1 and 1), drift by size."""
    mask = tensor([[True, True], [True, False]])
    old = torch.full((2, 2), -1.0)
    logp = old + tensor([[1.5, 0.5], [1.1, 9.0]]).log()
    forwards = {"policy_logp": logp, "old_logp": old, "reference_logp": old, "advantages": torch.ones(2, 2)}
    batch = batch_of(mask, count=tensor(2.0))
    k3 = lambda ratio: math.log(ratio) + 1 / ratio - 1
    wanted = {
        "policy_loss": -((1.2 + 0.5) / 2 + 1.1) / 2,
        "kl_loss": (k3(1.5) + k3(0.5) + k3(1.1)) / 3,
        "ratio": 3.1 / 3,
        "clip_fraction": 1 / 3,
        "drift": (math.log(1.5) + math.log(2) + math.log(1.1)) / 3,
    }
    metrics = grpo.loss(forwards, batch, grpo.Config(kl_coef=0.0))[1]
    assert {name: number(metric) for name, metric in metrics.items()} == pytest.approx(wanted, rel=1e-4)
    assert float(metrics["ratio"][1]) == 3
    found = rloo.loss(forwards, batch, rloo.Config())[1]
    wanted = {
        "policy_loss": -(0.75 + 1.1) / 2,
        "ratio": 1.85 / 2,
        "clip_fraction": 0.0,
        "drift": (math.log(1.5) + math.log(2) + math.log(1.1)) / 3,
    }
    assert {name: number(metric) for name, metric in found.items()} == pytest.approx(wanted, rel=1e-4)


def test_grpo_kl_has_the_value_of_k3_and_the_gradient_of_k2() -> None:
    """T38: k3's own gradient is of the other KL."""
    given = problem("grpo", seed=6, kl_coef=1.0)
    found = {}
    for estimator in ("k3+", "k3", "k2"):
        logp = given.forwards["policy_logp"].clone().requires_grad_()
        config = dataclasses.replace(given.config, kl_estimator=estimator)
        total, _ = grpo.loss({**given.forwards, "policy_logp": logp}, given.batch, config)
        total.backward()
        found[estimator] = (total.detach(), logp.grad)
    close(found["k3+"][0], found["k3"][0])
    close(found["k3+"][1], found["k2"][1])
    assert (found["k3"][1] - found["k2"][1]).abs().max() > 1e-3 and abs(found["k3"][0] - found["k2"][0]) > 1e-4


@pytest.mark.parametrize("moved", [0.0, 0.4])
def test_grpo_weighted_kl_has_the_right_gradient_off_policy_too(moved: float) -> None:
    """T38: exact expectation under the OLD policy of a 7-way categorical; k3+ is right on-policy only."""
    rng = torch.Generator().manual_seed(2)
    start = torch.randn(7, generator=rng)
    theta = (start + moved * torch.randn(7, generator=rng)).requires_grad_()
    old, reference = start.log_softmax(-1), torch.randn(7, generator=rng).log_softmax(-1)
    logp = theta.log_softmax(-1)
    (wanted,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), theta, retain_graph=True)
    found = {}
    for estimator in ("k3-weighted", "k3+"):
        # one response of one token an outcome, weighted by its old probability through the length constant of 1
        config = grpo.Config(kl_coef=1.0, kl_estimator=estimator, clip=0.0, length_constant=1)
        total = torch.zeros(())
        for i in range(7):
            one = lambda x, i=i: x[i].reshape(1, 1)
            forwards = {"policy_logp": one(logp), "old_logp": one(old), "reference_logp": one(reference)}
            forwards["advantages"] = torch.zeros(1, 1)
            batch = batch_of(torch.ones(1, 1, dtype=torch.bool), count=tensor(1.0))
            total = total + old[i].exp() * grpo.loss(forwards, batch, config)[0]
        (found[estimator],) = torch.autograd.grad(total, theta, retain_graph=True)
    close(found["k3-weighted"], wanted)
    assert torch.allclose(found["k3+"], wanted, atol=1e-4) == (moved == 0)
