"""The shared maths against numbers worked by hand and tables of the literature."""

import itertools
import math

import pytest
import torch
from torch import tensor

from methods import ops

close = lambda found, wanted, tol=1e-4: torch.testing.assert_close(
    torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64), rtol=tol, atol=tol
)
MASK = torch.ones(1, 3, dtype=torch.bool)


def test_next_token_logps_score_the_token_after() -> None:
    """T04: a model sure of (t + 1) mod V gives the true next token log-prob 0, and every other shift next to none."""
    vocab = 7
    ids = torch.arange(12).remainder(vocab).unsqueeze(0)
    logits = 50 * torch.nn.functional.one_hot((ids + 1) % vocab, vocab).float()
    found = ops.next_token_logps(logits, ids)
    assert found.shape == (1, 11)
    close(found, torch.zeros(1, 11))
    assert (ops.token_logps(logits, ids) < -40).all()


def test_token_logps_divide_logits_by_the_temperature() -> None:
    # logits (0, ln 9), T = 2: (0, ln 3), so 1/4 and 3/4
    logits = tensor([0.0, math.log(9)]).expand(2, 2)
    close(ops.token_logps(logits, tensor([0, 1]), temperature=2.0).exp(), [0.25, 0.75])
    close(ops.token_logps(logits, tensor([0, 1])).exp(), [0.1, 0.9])
    logits = logits.unsqueeze(0)
    close(ops.next_token_logps(logits, tensor([[0, 1]]), 2.0).exp(), [[0.75]])
    close(ops.next_token_logps(logits, tensor([[0, 1]])).exp(), [[0.9]])


def test_token_logps_upcast_before_the_softmax() -> None:
    """T44: bf16 logits are normalised in fp32."""
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).mul(3).bfloat16()
    tokens = torch.arange(50)
    found = ops.token_logps(logits, tokens)
    assert found.dtype == torch.float32
    close(found, logits.double().log_softmax(-1)[torch.arange(50), tokens], 1e-5)
    assert (logits.log_softmax(-1)[torch.arange(50), tokens].float() - found).abs().max() > 1e-3


def test_entropy_of_known_distributions() -> None:
    close(ops.token_entropy(torch.zeros(2, 8)), [math.log(8)] * 2)
    # (1/4, 3/4) at T = 2: -(ln(1/4)/4 + 3 ln(3/4)/4) = 0.562335
    close(ops.token_entropy(tensor([0.0, math.log(9)]), 2.0), 0.562335)
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).mul(3).bfloat16()
    wanted = torch.distributions.Categorical(logits=logits.double()).entropy()
    close(ops.token_entropy(logits), wanted, 1e-5)  # T44: in fp32


def test_reductions_ignore_what_is_masked() -> None:
    x = tensor([[2.0, 4.0, float("nan")], [6.0, float("inf"), 0.0]])
    mask = tensor([[True, True, False], [True, False, False]])
    close(ops.masked_sum(x, mask), 12.0)
    close(ops.masked_mean(x, mask), 4.0)
    close(ops.sequence_sum(x, mask), [6.0, 6.0])
    close(ops.sequence_mean(x, mask), [3.0, 6.0])
    nothing = torch.zeros_like(mask)
    close(ops.masked_mean(x, nothing), 0.0)
    close(ops.masked_mean(x, tensor([[True, False, False], [False, False, False]])), 2.0)
    close(ops.sequence_mean(x, nothing), [0.0, 0.0])


def test_share_of_an_empty_step_is_zero() -> None:
    """T09, and a fractional count is not rounded up."""
    close(ops.share(tensor(0.0), tensor(0.0)), 0.0)
    close(ops.share(tensor(3.0), tensor(0.5)), 6.0)
    close(ops.share(tensor(3.0), tensor(0.0)), 3.0)


def test_last_index_is_the_eos_or_where_it_was_cut() -> None:
    """T28, T29."""
    assert ops.last_index(tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()).tolist() == [1, 3, 0]


def test_margins_are_the_papers_table() -> None:
    """T18: Llama 2, table 27; grade 3 is significantly better."""
    grades = tensor([0, 1, 2, 3])
    close(ops.margin(grades, "none"), [0, 0, 0, 0])
    close(ops.margin(grades, "small"), [0, 1 / 3, 2 / 3, 1])
    close(ops.margin(grades.float(), "large"), [0, 1, 2, 3])


def test_piecewise_branches() -> None:
    """T24: strict < at 0.15; the golden cases of METHODS 4.1 and one step to either side."""
    logit = lambda p: torch.tensor(p, dtype=torch.float64).logit().float()
    tagged = tensor([False, False, False, True, False, False])
    step = 1e-6
    safety = torch.stack(
        [logit(p) for p in (0.9, 0.14, 0.15, 0.9)]
        + [tensor(ops.SAFETY_THRESHOLD - step), tensor(ops.SAFETY_THRESHOLD + step)]
    )
    helpfulness = logit(0.8).expand(6)
    found = ops.piecewise(helpfulness, safety, tagged)
    assert found.by_safety.tolist() == [False, True, False, True, True, False]
    assert found.branch.tolist() == [1, 0, 1, 1, 0, 1]
    close(found.score, torch.where(found.by_safety, safety, helpfulness))
    close(ops.SAFETY_THRESHOLD, -1.7346)
    assert found.branch.dtype == torch.int64


def test_piecewise_compares_in_fp32() -> None:
    """The nearest bf16 number to a threshold lies on one side of it; the comparison must not round the threshold."""
    safety = tensor([0.15, 0.7]).bfloat16()
    for threshold in (0.15, 0.7):  # bf16 0.15039 and 0.69922
        low = ops.piecewise(torch.zeros(2).bfloat16(), safety, tensor([False, False]), threshold)
        exact = ops.piecewise(torch.zeros(2), safety.float(), tensor([False, False]), threshold)
        assert torch.equal(low.by_safety, exact.by_safety) and torch.equal(low.score, exact.score)


def test_piecewise_of_large_raw_scores_is_finite() -> None:
    """T23: sigmoid(20) is 1 in bf16 and fp32; its logit would be infinite."""
    for dtype in (torch.bfloat16, torch.float32):
        raw = tensor([20.0, -20.0, 88.0], dtype=dtype)
        found = ops.piecewise(raw, raw, tensor([False, False, True]))
        assert found.score.dtype == torch.float32
        assert ops.whiten(found.score).isfinite().all()
        assert torch.sigmoid(raw).logit().isinf().any()


def test_ties_are_wrong_for_pairs_and_shared_for_candidates() -> None:
    """T20: a constant scorer has accuracy 0, and 1/4 in best of 4."""
    found = ops.pair_accuracy(tensor([1.0, 2.0, 0.0]), tensor([1.0, 1.0, 3.0]))
    close(found, [0, 1, 0])
    assert found.dtype == torch.float32
    close(ops.best_of_credit(torch.zeros(2, 4)), [0.25, 0.25])
    close(ops.best_of_credit(tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 2.0]])), [1.0, 0.0, 0.5])
    close(ops.best_of_credit(tensor([[3.0, 1.0], [2.0, 1.0]])), [1.0, 1.0])  # each row has its own maximum


def test_missing_eos_modes() -> None:
    """T30: score 3, penalty 1: replace gives -1, subtract 2."""
    score, finished = tensor([3.0, 5.0, -2.0]), tensor([False, True, True])
    found = lambda mode: ops.replace_missing_eos(score, finished, mode, 1.0).tolist()
    assert found("replace") == [-1.0, 5.0, -2.0]
    assert found("subtract") == [2.0, 5.0, -2.0]
    assert found("minimum") == [-2.0, 5.0, -2.0]
    assert found("none") == [3.0, 5.0, -2.0]


def test_kl_estimators() -> None:
    """T37: METHODS 6.3; a policy that likes its token more than the reference has positive k1."""
    logp, reference = tensor([[-1.0, -2.0, -0.5]]), tensor([[-1.2, -1.5, -0.5]])
    for name, wanted in {
        "k1": (0.2, -0.5, 0),
        "k2": (0.02, 0.125, 0),
        "k3": (0.018731, 0.148721, 0),
        "abs": (0.2, 0.5, 0),
    }.items():
        close(ops.kl(logp, reference, MASK, name), [wanted], 1e-5)
    masked = ops.kl(logp, tensor([[float("nan"), -1.5, 3.0]]), tensor([[False, True, False]]), "k3")
    close(masked, [[0, 0.148721, 0]], 1e-5)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_only_k2_has_the_gradient_of_the_kl(name: str) -> None:
    """T38: on a 7-way categorical, expectation over the policy's own samples taken exactly."""
    rng = torch.Generator().manual_seed(1)
    theta = (2 * torch.randn(7, generator=rng, dtype=torch.float64)).requires_grad_()
    reference = torch.randn(7, generator=rng, dtype=torch.float64).log_softmax(-1)
    logp = theta.log_softmax(-1)
    weight = logp.exp().detach()
    estimate = ops.kl(logp.unsqueeze(0), reference.unsqueeze(0), torch.ones(1, 7, dtype=torch.bool), name)
    (found,) = torch.autograd.grad((weight * estimate[0]).sum(), theta, retain_graph=True)
    (forward,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), theta, retain_graph=True)
    (backward,) = torch.autograd.grad((reference.exp() * (reference - logp)).sum(), theta)
    close(found, {"k1": torch.zeros(7), "k2": forward, "k3": backward}[name], 1e-5)
    assert (forward - backward).abs().max() > 0.05
    value = (weight * estimate[0]).sum()
    true = (weight * (logp - reference)).sum().detach()
    assert (abs(value - true) < 1e-6) == (name != "k2")  # k2 alone is biased


def test_adaptive_kl_coefficient() -> None:
    """T39, T60: METHODS 6.7; the KL is the sum over a response, so long responses count more."""
    step = lambda kl: ops.adaptive_kl_coef(0.2, kl, samples=128, target=6.0, horizon=10_000)
    close([step(12.0), step(6.0), step(3.0)], [0.200512, 0.2, 0.199488], 1e-7)
    close(step(6.6), 0.2 * (1 + 0.1 * 128 / 10_000), 1e-9)  # inside the clip: error 0.1
    assert ops.adaptive_kl_coef(10.0, 100.0, 128, 6.0, 100.0) == 10.0
    assert ops.adaptive_kl_coef(1e-4, 0.0, 128, 6.0, 100.0) == 1e-4


def test_token_rewards_place_the_score_on_the_last_token() -> None:
    """T28, T29, T37: METHODS C.2; the pad after EOS and the KL of pads earn nothing."""
    k1 = tensor([[0.2, -0.5, 0.0, 9.0], [0.2, -0.5, 0.0, 0.1]])
    mask = tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    found = ops.token_rewards(tensor([1.0, 1.0]), k1, mask, 0.1)
    close(found, [[-0.02, 0.05, 1.0, 0.0], [-0.02, 0.05, 0.0, 0.99]])
    assert torch.equal(ops.token_rewards(tensor([1.0, 1.0]).bfloat16(), k1, mask, 0.1), found)


@pytest.mark.parametrize(
    ("gamma", "lam", "wanted"),
    [
        (1.0, 0.95, (0.74925, 0.915, 0.7)),
        (1.0, 1.0, (0.83, 0.95, 0.7)),
        (1.0, 0.0, (-0.12, 0.25, 0.7)),
        (0.99, 0.9, (0.654794, 0.8707, 0.7)),
    ],
)
def test_gae_goldens(gamma: float, lam: float, wanted: tuple[float, ...]) -> None:
    """T32, T33: METHODS C.2; returns are advantages plus values."""
    rewards, values = tensor([[-0.02, 0.05, 1.0]]), tensor([[0.2, 0.1, 0.3]])
    advantages, returns = ops.gae(rewards, values, MASK, gamma, lam)
    close(advantages, [wanted], 1e-5)
    close(returns - advantages, values, 1e-6)


def test_gae_reward_on_eos_not_on_the_pad() -> None:
    """T28: METHODS 6.2, the EOS row."""
    values = tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])
    mask = tensor([[1, 1, 1, 1, 0]]).bool()
    rewards = ops.token_rewards(tensor([1.0]), torch.zeros(1, 5), mask, 0.1)
    advantages, returns = ops.gae(rewards, values, mask, 1.0, 0.95)
    close(advantages, [[0.7997, 0.7365, 0.67, 0.6, 0]], 1e-4)
    close(returns, [[0.8997, 0.9365, 0.97, 1.0, 0]], 1e-4)


def test_gae_never_reads_values_at_pads() -> None:
    """T31."""
    mask = tensor([[1, 1, 0, 0]]).bool()
    rewards = tensor([[0.1, 1.0, 7.0, 7.0]])
    one = ops.gae(rewards, tensor([[0.2, 0.3, 0.0, 0.0]]), mask, 0.9, 0.8)
    two = ops.gae(rewards, tensor([[0.2, 0.3, 1e6, float("nan")]]), mask, 0.9, 0.8)
    for a, b in zip(one, two):
        assert torch.equal(a, b) and not a[:, 2:].any()


def test_gae_limits() -> None:
    """lambda 1 is the discounted return minus the value; lambda 0 the one-step error."""
    rng = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(4, 6, generator=rng), torch.randn(4, 6, generator=rng)
    mask = torch.ones(4, 6, dtype=torch.bool)
    gamma = 0.9
    returns = torch.stack([sum(gamma**i * rewards[:, t + i] for i in range(6 - t)) for t in range(6)], 1)
    close(ops.gae(rewards, values, mask, gamma, 1.0)[0], returns - values, 1e-5)
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], 1)
    close(ops.gae(rewards, values, mask, gamma, 0.0)[0], rewards + gamma * following - values, 1e-5)


def test_whiten() -> None:
    """T25, T27: biased; pads neither enter nor change; without shift_mean the mean stays."""
    close(ops.whiten(tensor([-1.0, 0, 1, 2])), [-1.341641, -0.447214, 0.447214, 1.341641], 1e-5)
    x, mask = tensor([[2.0, 4.0, 9.0, float("nan")]]), tensor([[1, 1, 0, 0]]).bool()
    close(ops.whiten(x, mask), [[-1, 1, 0, 0]])
    close(ops.whiten(x, mask, shift_mean=False), [[2, 4, 0, 0]])
    line = torch.linspace(1.2, 2.0, 9)
    kept = ops.whiten(line, shift_mean=False)
    close(kept[[0, 4, 8]], [0.0508, 1.6, 3.1491])
    close(kept.mean(), line.mean(), 1e-5)
    close(ops.whiten(line).mean(), 0.0, 1e-5)
    assert not ops.whiten(torch.full((5,), 3.0)).any()  # constant: 0, not infinite
    close(ops.whiten(tensor([0.0, 2.0]), eps=3.0), [-0.5, 0.5])  # 1 / sqrt(1 + 3): eps lies inside the root


def test_whiten_keeps_what_separates_ranks() -> None:
    """T26: two ranks of mean +3 and -3; global whitening keeps rank means, one a rank would erase them."""
    ranks = tensor([[2.0, 3.0, 4.0], [-2.0, -3.0, -4.0]])
    found = ops.whiten(ranks)
    wanted = 3 / math.sqrt(9 + 2 / 3)
    close(found.mean(1), [wanted, -wanted])
    close(ops.whiten(ranks[0]).mean(), 0.0)


def test_running_moments_equal_those_of_all_numbers() -> None:
    """METHODS 5.2: Chan's update; the first batch sets everything."""
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, generator=rng) * 3 + 5 for n in (4, 1, 7)]
    moments = ops.Moments()
    for i, batch in enumerate(batches):
        moments = ops.update_moments(moments, batch)
        seen = torch.cat(batches[: i + 1]).double()
        close(moments.mean, seen.mean(), 1e-9)
        close(moments.var, seen.var(correction=0), 1e-9)
        close(moments.std, seen.std(correction=1), 1e-9)
        assert moments.size == seen.numel()
    assert ops.update_moments(moments, torch.zeros(0)) == moments
    assert ops.Moments().std == 1.0
    assert ops.update_moments(ops.Moments(), tensor([5.0])).std == 1.0
    close(ops.update_moments(ops.Moments(), tensor([1.0, 3.0])).std, math.sqrt(2))


def test_explained_variance() -> None:
    """T49: 1 for a perfect critic, 0 for a constant one, less for a wrong one."""
    returns = tensor([[1.0, 2.0, 3.0, 99.0]])
    mask = tensor([[1, 1, 1, 0]]).bool()
    found = lambda values: ops.explained_variance(tensor([values]), returns, mask)
    close(found([1.0, 2.0, 3.0, 0.0]), 1.0)
    close(found([5.0, 5.0, 5.0, 0.0]), 0.0)
    close(found([3.0, 2.0, 1.0, 0.0]), -3.0)  # errors -2, 0, 2: variance 8/3 over 2/3
    flat = ops.explained_variance(tensor([[3.0, 2.0, 1.0, 0.0]]), torch.ones(1, 4), mask)
    assert float(flat) < -1e6  # returns that do not vary: what varies beside them explains nothing
    rng = torch.Generator().manual_seed(0)
    low = [(5 + torch.randn(2, 8, generator=rng)).bfloat16() for _ in range(2)]
    values, wanted = (x.double() for x in low)
    exact = 1 - (wanted - values).var(correction=0) / wanted.var(correction=0)
    close(ops.explained_variance(*low, torch.ones(2, 8, dtype=torch.bool)), exact, 1e-5)  # T44


def test_clipped_surrogate_table() -> None:
    """T47: METHODS 5.2."""
    ratio = tensor([1.5, 0.5, 1.5, 0.5])
    loss, found, clipped = ops.clipped_surrogate(ratio.log(), torch.zeros(4), tensor([1.0, 1, -1, -1]), 0.2)
    close(loss, [-1.2, -0.5, 1.5, 0.8])
    close(found, ratio)
    assert clipped.tolist() == [True, False, False, True]
    loss, _, clipped = ops.clipped_surrogate(ratio.log(), torch.zeros(4), tensor([1.0, 1, -1, -1]), 0.0)
    close(loss, [-1.5, -0.5, 1.5, 0.5])
    assert not clipped.any() and clipped.dtype == torch.bool
    far = ops.clipped_surrogate(tensor([500.0, -500.0]), torch.zeros(2), tensor([-1.0, -1.0]), 0.0)[1]
    close(far.log(), [20.0, -20.0])


def test_clipped_value_loss_takes_the_larger() -> None:
    """T48: V 1, old 0, clip 0.2, returns 2 and -2: 3.24 and 9, halved once."""
    one, zero = torch.ones(2), torch.zeros(2)
    loss, clipped = ops.clipped_value_loss(one, zero, tensor([2.0, -2.0]), 0.2)
    close(loss, [3.24 / 2, 9.0 / 2])
    assert clipped.tolist() == [True, False]
    loss, clipped = ops.clipped_value_loss(-one, zero, tensor([-2.0, 2.0]), 0.2)
    close(loss, [3.24 / 2, 9.0 / 2])
    loss, clipped = ops.clipped_value_loss(one, zero, tensor([2.0, -2.0]), 0.0)
    close(loss, [0.5, 4.5])
    assert not clipped.any() and clipped.dtype == torch.bool
    loss, clipped = ops.clipped_value_loss(tensor([0.125]), tensor([0.0]), tensor([2.0]), 0.25)
    assert not clipped.any()  # inside the clip both are one: nothing was clipped


def test_best_of_n_kl_table() -> None:
    """METHODS 9.3."""
    table = {
        1: 0,
        2: 0.1931,
        4: 0.6363,
        8: 1.2044,
        10: 1.4026,
        16: 1.8351,
        32: 2.4970,
        64: 3.1745,
        100: 3.6152,
        1000: 5.9088,
    }
    for n, wanted in table.items():
        close(ops.best_of_n_kl(n), wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_mean_equals_enumeration(n: int) -> None:
    gold = [0.3, -1.0, 2.0, 0.5, 4.0, -3.0]  # sorted by proxy: the last index of a subset is its best
    subsets = list(itertools.combinations(range(6), n))
    close(ops.best_of_n_mean(gold, n), sum(gold[max(s)] for s in subsets) / len(subsets), 1e-9)


@pytest.mark.parametrize("n", [0, 7])
def test_best_of_n_mean_needs_n_responses(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n} from 6"):
        ops.best_of_n_mean([0.0] * 6, n)
