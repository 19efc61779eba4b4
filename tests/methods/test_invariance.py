"""What holds of every method: its loss is a sum over responses that nothing about the batch can change."""

import json
from dataclasses import replace

import pytest
import torch
from problems import Problem, permute_rollout, problem, rollout, take, widen, widen_rollout

import methods

NAMES = methods.names()
ONLINE = [name for name in NAMES if methods.describe(name).loop == "online"]
VARIANTS = [
    *((name, {}) for name in NAMES),
    *(("dpo", {"loss": loss}) for loss in ("ipo", "ipo-sum", "hinge", "sigmoid-lengthnorm")),
    *(("dpo", {"loss": loss, "label_smoothing": 0.1}) for loss in ("cdpo", "robust")),
    *(("rso", {"loss": loss}) for loss in ("hinge-norm", "hinge")),
    ("reward", {"safety_weight": 1.0, "margin": "large"}),
    ("reward-pointwise", {"verdict": "safe"}),
    ("ppo", {"entropy_coef": 0.1, "entropy_clip": 0.5}),
    ("ppo", {"clip": 0.0, "value_clip": 0.0}),
    ("grpo", {"kl_estimator": "k2", "length_constant": 8}),
    ("grpo", {"kl_estimator": "k3"}),
    ("grpo", {"kl_estimator": "k3-weighted", "kl_coef": 0.5}),
    ("curriculum-dpo", {"direction": "hard-to-easy", "loss": "hinge"}),
    ("curriculum-dpo", {"by": "order"}),
]
each_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=[f"{n}-{s}" for n, s in VARIANTS])


def same(a: Problem, b: Problem) -> None:
    (one, metrics), (two, others) = a.loss(), b.loss()
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert metrics.keys() == others.keys()
    for name in metrics:
        for x, y in zip(metrics[name], others[name]):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@each_variant
@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan")])
def test_padding_changes_nothing(name: str, settings: dict, garbage: float) -> None:
    """T45, T31: every loss and every logged metric is blind to what lies outside the mask."""
    given = problem(name, seed=1, **settings)
    same(given, widen(given, 3, garbage))


@each_variant
def test_order_of_responses_changes_nothing(name: str, settings: dict) -> None:
    given = problem(name, seed=2, rows=5, **settings)
    order = torch.randperm(given.batch.mask.shape[0], generator=torch.Generator().manual_seed(3))
    same(given, take(given, order))


@each_variant
def test_micro_batches_add_up(name: str, settings: dict) -> None:
    """T50: 1 x 8, 4 x 2 and 8 x 1 rows give one loss, one gradient and the same metrics."""
    whole = problem(name, seed=4, rows=8, **settings)
    leaves = {key: value.clone().requires_grad_() for key, value in whole.forwards.items()}
    whole = replace(whole, forwards=leaves)
    total, metrics = whole.loss()
    total.backward()
    wanted = {key: leaf.grad.clone() for key, leaf in leaves.items() if leaf.grad is not None}
    assert wanted
    for rows in (1, 2, 4):
        for leaf in leaves.values():
            leaf.grad = None
        parts = []
        for first in range(0, 8, rows):
            inside = (whole.batch.group >= first) & (whole.batch.group < first + rows)
            parts.append(take(whole, inside.nonzero().flatten()).loss())
            parts[-1][0].backward()
        torch.testing.assert_close(sum(part[0] for part in parts), total, rtol=1e-5, atol=1e-6)
        for key, gradient in wanted.items():
            torch.testing.assert_close(leaves[key].grad, gradient, rtol=1e-5, atol=1e-6)
        for key, pair in metrics.items():
            for i in (0, 1):
                found = sum(part[1][key][i] for part in parts)
                torch.testing.assert_close(found, pair[i], rtol=1e-5, atol=1e-5)


@each_variant
def test_no_gradient_outside_the_mask(name: str, settings: dict) -> None:
    given = problem(name, seed=5, **settings)
    leaves = {key: value.clone().requires_grad_() for key, value in given.forwards.items()}
    replace(given, forwards=leaves).loss()[0].backward()
    for key, leaf in leaves.items():
        if leaf.grad is not None and leaf.shape == given.batch.mask.shape:
            assert not leaf.grad[~given.batch.mask].any(), key


@each_variant
def test_arguments_are_not_changed_and_results_are_plain(name: str, settings: dict) -> None:
    """T68 (a loss that zeroes its labels in place), and what every loop relies on: fp32, detached metrics."""
    given = problem(name, seed=6, **settings)
    before = {key: value.clone() for key, value in given.forwards.items()}
    kept = {key: value.clone() for key, value in vars(given.batch).items() if isinstance(value, torch.Tensor)}
    leaves = {key: value.requires_grad_() for key, value in given.forwards.items()}
    total, metrics = replace(given, forwards=leaves).loss()
    assert total.dtype == torch.float32 and total.shape == () and total.requires_grad
    for pair in metrics.values():
        for value in pair:
            assert value.dtype == torch.float32 and value.shape == () and not value.requires_grad
    assert all(torch.equal(given.forwards[key], value) for key, value in before.items())
    assert all(torch.equal(getattr(given.batch, key), value) for key, value in kept.items())


@each_variant
def test_bfloat16_forwards_are_reduced_in_float32(name: str, settings: dict) -> None:
    """T44: the sum of rounded log-probs, not a rounded sum."""
    given = problem(name, seed=7, rows=8, **settings)
    low = {key: value.bfloat16() for key, value in given.forwards.items()}
    high = {key: value.float() for key, value in low.items()}
    one, two = replace(given, forwards=low).loss()[0], replace(given, forwards=high).loss()[0]
    assert one.dtype == torch.float32
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@each_variant
def test_a_step_that_counts_nothing_is_zero(name: str, settings: dict) -> None:
    """T09: an all-masked step has loss 0, not NaN."""
    given = problem(name, seed=8, **settings)
    empty = replace(
        given.batch,
        mask=torch.zeros_like(given.batch.mask),
        label_mask=torch.zeros_like(given.batch.label_mask),
        count=torch.zeros(()),
    )
    total, metrics = given.method.loss(given.forwards, empty, given.config)
    assert torch.isfinite(total)
    assert all(torch.isfinite(value) for pair in metrics.values() for value in pair)
    if given.method.unit == "token":
        assert total == 0


@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_signal_is_blind_to_padding(name: str, garbage: float) -> None:
    """T31, T45: values at pads are never read, every metric of a rollout is masked."""
    method = methods.load(name)
    config = method.Config()
    given = rollout(seed=11)
    one, _, metrics = method.signal(given, config, method.initial_state(config))
    two, _, others = method.signal(widen_rollout(given, 4, garbage), config, method.initial_state(config))
    width = given.mask.shape[1]
    for key, value in one.items():
        torch.testing.assert_close(two[key][:, :width], value, rtol=1e-5, atol=1e-6)
        assert not two[key][:, width:].any() and not value[~given.mask].any()
        assert not value.requires_grad
    for key, pair in metrics.items():
        torch.testing.assert_close(others[key], pair, rtol=1e-5, atol=1e-5)


@each_variant
def test_loss_stays_on_the_batchs_device(name: str, settings: dict) -> None:
    """Whatever is made without a device lands on another one here and cannot be mixed with the batch."""
    given = problem(name, seed=8, **settings)
    wanted, metrics = given.loss()
    with torch.device("meta"):
        found, others = given.loss()
    torch.testing.assert_close((found, others), (wanted, metrics))


@pytest.mark.parametrize("name", ONLINE)
def test_signal_stays_on_the_rollouts_device(name: str) -> None:
    method = methods.load(name)
    config = method.Config()
    given = rollout(seed=14)
    wanted = method.signal(given, config, method.initial_state(config))
    with torch.device("meta"):
        found = method.signal(given, config, method.initial_state(config))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ONLINE),
        *((n, {"missing_eos": "subtract", "missing_eos_value": 0.3}) for n in ("ppo", "remax")),
    ],
)
def test_bfloat16_rollouts_are_processed_in_float32(name: str, settings: dict) -> None:
    """T44, METHODS 0.2: scores, KL, values and advantages in fp32, whatever the models' dtype."""
    method = methods.load(name)
    config = method.Config(**settings)
    given = rollout(seed=13)
    fields = ("old_logp", "reference_logp", "score", "value", "baseline_score")
    low = replace(given, **{field: getattr(given, field).bfloat16() for field in fields})
    high = replace(given, **{field: getattr(low, field).float() for field in fields})
    one, _, metrics = method.signal(low, config, method.initial_state(config))
    two, _, others = method.signal(high, config, method.initial_state(config))
    for key, value in one.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, two[key], rtol=1e-6, atol=1e-6)
    for key, pair in metrics.items():
        torch.testing.assert_close(pair, others[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ONLINE)
def test_signal_follows_the_order_of_responses(name: str) -> None:
    """T74: each response keeps its own score, baseline and group, wherever it stands."""
    method = methods.load(name)
    config = method.Config()
    given = rollout(seed=12)
    order = torch.randperm(given.mask.shape[0], generator=torch.Generator().manual_seed(1))
    one, _, _ = method.signal(given, config, method.initial_state(config))
    two, _, _ = method.signal(permute_rollout(given, order), config, method.initial_state(config))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ONLINE)
def test_state_survives_json_exactly(name: str) -> None:
    """T59, T60: a run resumed from its saved state goes on with the same numbers, bit for bit."""
    method = methods.load(name)
    config = method.Config(**({"reward_scaling": "normalise", "kl_control": "adaptive"} if name == "ppo" else {}))
    state = method.initial_state(config)
    for seed in range(3):
        _, state, _ = method.signal(rollout(seed=seed), config, state)
    assert all(type(value) is float for value in state.values())
    assert state["iterations"] == 3
    saved = json.loads(json.dumps(state))
    kept, after, _ = method.signal(rollout(seed=9), config, state)
    resumed, after_resumed, _ = method.signal(rollout(seed=9), config, saved)
    assert after == after_resumed
    assert all(torch.equal(kept[key], resumed[key]) for key in kept)
