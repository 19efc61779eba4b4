"""PPO: every switch acts, alone and as the papers say."""

import dataclasses
import math

import pytest
import torch
from problems import problem, rollout
from torch import tensor

from methods import ops, ppo
from methods.batch import Rollout, batch_of

close = lambda found, wanted, tol=1e-4: torch.testing.assert_close(
    torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64), rtol=tol, atol=tol
)
PLAIN = ppo.Config(kl_coef=0.0, missing_eos="none", reward_scaling="none", whiten_advantages=False)
NONE_YET = ops.Moments()
number = lambda metric: float(metric[0] / metric[1])


def signal(given: Rollout, config: ppo.Config):
    return ppo.signal(given, config, ppo.initial_state(config))


def processed(score: list[float], config: ppo.Config, moments: ops.Moments = NONE_YET, finished=None):
    finished = [True] * len(score) if finished is None else finished
    return ppo.process_score(tensor(score), tensor(finished), config, moments)


def test_defaults_are_the_preset_llama2() -> None:
    assert ppo.Config() == ppo.Config(**ppo.PRESETS["llama2"])


def test_presets_are_the_papers() -> None:
    """METHODS 4.2, 5.1 to 5.3; a preset names every trick, so that no default can change it."""
    llama2, ppo_max = (ppo.Config(**ppo.PRESETS[name]) for name in ("llama2", "ppo-max"))
    assert (llama2.kl_coef, llama2.clip, llama2.reward_scaling, llama2.gamma, llama2.lam) == (
        0.01,
        0.2,
        "whiten",
        1,
        0.95,
    )
    assert (llama2.vf_coef, llama2.value_clip) == (0.5, 0.2)
    assert (ppo_max.kl_coef, ppo_max.reward_scaling, ppo_max.reward_clip, ppo_max.lam) == (0.05, "normalise", 0.8, 0.9)
    assert (ppo_max.value_clip, ppo_max.vf_coef, ppo_max.whiten_advantages) == (0.2, 0.2, False)
    script = ppo.Config(**ppo.PRESETS["moss-script"])
    assert (script.reward_scaling, script.reward_clip, script.lam, script.kl_coef) == ("scale", 0.0, 0.95, 0.01)
    assert ppo.Config(**ppo.PRESETS["instructgpt"]).kl_coef == 0.02
    assert ppo.LOOP["llama2"]["batch_size"] == 512 and ppo.LOOP["llama2"]["minibatch_size"] == 64
    assert ppo.LOOP["ppo-max"]["batch_size"] == 128 and ppo.LOOP["ppo-max"]["minibatch_size"] == 32
    tricks = {field.name for field in dataclasses.fields(ppo.Config)}
    optional = {"kl_target", "kl_horizon", "missing_eos_value", "entropy_clip"}
    for preset in ppo.PRESETS.values():
        assert tricks - set(preset) <= optional


def test_reward_is_normalised_then_clipped() -> None:
    """T88: raw 20 under mean 0, deviation 5, clip 2 gives 2 (normalised it is 4)."""
    config = dataclasses.replace(PLAIN, reward_scaling="normalise", reward_clip=2.0)
    n = 1e12  # so many scores before that this one does not move the statistics
    found, _ = processed([20.0, -3.0], config, ops.Moments(0.0, 25.0, n))
    close(found, [2.0, -0.6])
    found, _ = processed([20.0], dataclasses.replace(config, reward_clip=0.0), ops.Moments(1.0, 25.0, n))
    close(found, [3.8])
    scaled = dataclasses.replace(config, reward_scaling="scale", reward_clip=0.0)
    close(processed([20.0, -5.0], scaled, ops.Moments(1.0, 25.0, n))[0], [4.0, -1.0])


def test_a_batch_sees_itself_in_the_statistics() -> None:
    """METHODS 5.2: the update comes before the normalisation; two scores of one batch become -+ 1 / sqrt 2."""
    config = dataclasses.replace(PLAIN, reward_scaling="normalise")
    found, moments = processed([1.0, 3.0], config)
    close(found, [-math.sqrt(0.5), math.sqrt(0.5)])
    assert moments == ops.Moments(2.0, 1.0, 2.0)


def test_a_constant_reward_is_not_infinite() -> None:
    config = dataclasses.replace(PLAIN, reward_scaling="normalise")
    assert processed([3.0, 3.0, 3.0], config)[0].tolist() == [0.0, 0.0, 0.0]
    assert processed([3.0] * 9, ppo.Config())[0].abs().max() < 1e-3


def test_few_scores_are_clipped_instead_of_whitened() -> None:
    """METHODS 4.1: fewer than 8 scores have no statistics; -9 and 7 are kept within 5."""
    config = dataclasses.replace(PLAIN, reward_scaling="whiten")
    assert processed([-9.0, 7.0, 0.5, 1, 1, 1, 1], config)[0].tolist() == [-5, 5, 0.5, 1, 1, 1, 1]
    found = processed([-1.0, 0, 1, 2, -1, 0, 1, 2], config)[0]
    close(found[:4], [-1.341641, -0.447214, 0.447214, 1.341641], 1e-5)


def test_missing_eos_lies_on_the_processed_scale() -> None:
    """T30, METHODS 6.4: replace is one deviation under the mean, whatever the raw scale; subtract is raw."""
    raw, finished = [103.0, 101.0, 109.0], [True, True, False]
    config = dataclasses.replace(PLAIN, missing_eos="replace", reward_scaling="normalise")
    found, moments = processed(raw, config, finished=finished)
    close(found, [math.sqrt(0.5), -math.sqrt(0.5), -1.0])
    assert moments.size == 2 and moments.mean == 102  # a score that is not used is not counted
    found, moments = processed(raw, dataclasses.replace(config, missing_eos="subtract"), finished=finished)
    assert moments.size == 3 and moments.mean == 104
    plain = lambda mode: processed(raw, dataclasses.replace(PLAIN, missing_eos=mode), finished=finished)[0].tolist()
    assert plain("replace") == [103.0, 101.0, -1.0]
    assert plain("subtract") == [103.0, 101.0, 108.0]
    assert plain("none") == raw
    clipped = dataclasses.replace(config, reward_clip=0.5)
    close(processed(raw, clipped, finished=finished)[0], [0.5, -0.5, -0.5])


def test_missing_eos_takes_the_batchs_minimum_before_whitening() -> None:
    config = dataclasses.replace(PLAIN, missing_eos="replace", reward_scaling="whiten")
    finished = [True] * 7 + [False]
    found, _ = processed([1.0, 2, 3, 4, 5, 6, 7, 99], config, finished=finished)
    assert found[7] == found[0] == found.min()
    close(found.mean(), 0.0)


def test_the_reward_lies_on_the_last_token() -> None:
    """T28, T29: with EOS or cut at the limit."""
    mask = tensor([[1, 1, 0], [1, 1, 1]]).bool()
    given = Rollout(
        *(mask, -torch.ones(2, 3), -torch.ones(2, 3), tensor([2.0, 3.0]), tensor([True, False]), torch.arange(2)),
        value=torch.zeros(2, 3),
    )
    found, _, _ = signal(given, dataclasses.replace(PLAIN, missing_eos="subtract", missing_eos_value=0.5))
    assert found["rewards"].tolist() == [[0, 2, 0], [0, 0, 2.5]]
    close(found["returns"], [[0.95 * 2, 2, 0], [0.95**2 * 2.5, 0.95 * 2.5, 2.5]])
    exact, _, _ = signal(given, dataclasses.replace(PLAIN, lam=1.0, gamma=0.5))
    close(exact["returns"], [[1, 2, 0], [0.75, 1.5, 3]])
    close(exact["advantages"], exact["returns"])  # a critic that says 0 everywhere (T49)


def test_kl_in_the_reward_has_the_right_sign_and_coefficient() -> None:
    """T37: METHODS C.2, through the whole signal."""
    given = Rollout(
        mask=torch.ones(1, 3, dtype=torch.bool),
        old_logp=tensor([[-1.0, -2.0, -0.5]]),
        reference_logp=tensor([[-1.2, -1.5, -0.5]]),
        score=tensor([1.0]),
        finished=tensor([True]),
        group=tensor([0]),
        value=tensor([[0.2, 0.1, 0.3]]),
    )
    found, _, metrics = signal(given, dataclasses.replace(PLAIN, kl_coef=0.1))
    close(found["rewards"], [[-0.02, 0.05, 1.0]])
    close(found["advantages"], [[0.74925, 0.915, 0.7]])
    close(found["returns"], [[0.94925, 1.015, 1.0]])
    close(number(metrics["kl"]), -0.3)
    close(number(metrics["kl_k3"]), 0.018731 + 0.148721)
    close(number(metrics["total_reward"]), 1.03)
    close(number(metrics["policy_nll"]), 3.5 / 3)
    close(number(metrics["reference_nll"]), 3.2 / 3)
    close(number(metrics["value"]), 0.2)
    close(number(metrics["return"]), (0.94925 + 1.015 + 1.0) / 3)
    close(number(metrics["advantage"]), (0.74925 + 0.915 + 0.7) / 3)
    assert number(metrics["response_length"]) == 3 and number(metrics["missing_eos"]) == 0


def test_metrics_of_a_rollout() -> None:
    """T45: by hand: two responses, of 1 and 2 tokens, one of them cut, one in each branch."""
    mask = tensor([[1, 0], [1, 1]]).bool()
    given = Rollout(
        *(mask, tensor([[-1.0, 5.0], [-2.0, -3.0]]), tensor([[-1.5, 9.0], [-1.0, -3.0]]), tensor([2.0, 5.0])),
        *(tensor([True, False]), torch.arange(2)),
        value=tensor([[1.0, 7.0], [2.0, 3.0]]),
        branch=tensor([0, 1]),
    )
    _, _, metrics = signal(given, dataclasses.replace(PLAIN, lam=1.0))
    wanted = {
        "score": 3.5,
        "score_std": 1.5,
        "processed_score": 3.5,
        "processed_score_std": 1.5,
        "kl": (0.5 - 1.0) / 2,
        "policy_nll": 6 / 3,
        "reference_nll": 5.5 / 3,
        "response_length": 1.5,
        "missing_eos": 0.5,
        "score_under_threshold": 2.0,
        "score_above_threshold": 5.0,
        "under_threshold": 0.5,
        "advantage": (1 + 3 + 2) / 3,
        "advantage_std": math.sqrt(((1 - 2) ** 2 + (3 - 2) ** 2) / 3),
        "return": 12 / 3,
        "value": 6 / 3,
        "kl_coef": 0.0,
        "total_reward": 3.5,
    }
    for name, value in wanted.items():
        close(number(metrics[name]), value), name
    # returns 2, 5, 5 (variance 2); errors 1, 3, 2 (variance 2/3)
    close(number(metrics["explained_variance"]), 1 - (2 / 3) / 2)
    low = signal(dataclasses.replace(given, branch=tensor([0, 0])), PLAIN)[2]
    assert number(low["under_threshold"]) == 1


def test_advantages_are_whitened_over_all_tokens_then_clipped() -> None:
    given = rollout(seed=3)
    raw, white = (signal(given, dataclasses.replace(PLAIN, whiten_advantages=on))[0] for on in (False, True))
    inside = white["advantages"][given.mask]
    close([inside.mean(), inside.std(correction=0)], [0, 1], 1e-4)
    close(
        inside,
        (raw["advantages"][given.mask] - raw["advantages"][given.mask].mean())
        / raw["advantages"][given.mask].std(correction=0),
    )
    assert torch.equal(white["returns"], raw["returns"])  # the critic's target is never whitened
    clipped = signal(given, dataclasses.replace(PLAIN, whiten_advantages=True, advantage_clip=0.5))[0]
    close(clipped["advantages"], white["advantages"].clamp(-0.5, 0.5))
    assert (white["advantages"].abs() > 0.5).any()


def test_whitened_rewards_keep_their_mean() -> None:
    """T27."""
    given = rollout(seed=4)
    config = dataclasses.replace(PLAIN, kl_coef=0.3)
    before = signal(given, config)[0]["rewards"][given.mask]
    after = signal(given, dataclasses.replace(config, whiten_rewards=True))[0]["rewards"][given.mask]
    close(after.mean(), before.mean())
    close(after.std(correction=0), 1.0)


def test_adaptive_kl_uses_the_sequence_sum() -> None:
    """T39: a response of 20 tokens at 0.6 nats a token has 12 nats: beta golden; a token mean would lower beta."""
    n = 128
    mask = torch.ones(n, 20, dtype=torch.bool)
    given = Rollout(
        *(mask, torch.zeros(n, 20), torch.full((n, 20), -0.6), torch.zeros(n), mask[:, 0], torch.arange(n)),
        value=torch.zeros(n, 20),
    )
    config = dataclasses.replace(PLAIN, kl_coef=0.2, kl_control="adaptive")
    found, state, _ = signal(given, config)
    close(state["kl_coef"], 0.200512, 1e-6)
    close(found["rewards"], torch.full((n, 20), -0.2 * 0.6))  # this batch is charged by the old coefficient
    again, state, _ = ppo.signal(given, config, state)
    close(again["rewards"], torch.full((n, 20), -0.200512 * 0.6), 1e-5)
    _, fixed, metrics = signal(given, dataclasses.replace(config, kl_control="fixed"))
    assert fixed["kl_coef"] == 0.2 and number(metrics["kl_coef"]) == pytest.approx(0.2)
    near = dataclasses.replace(config, kl_target=11.0)  # 12 of 11 nats: an error of 1/11, which no clip hides
    close(signal(given, near)[1]["kl_coef"], 0.2 * (1 + 1 / 11 * n / near.kl_horizon), 1e-6)


def test_running_statistics_go_on_from_the_state() -> None:
    """T59: the second batch is normalised by both."""
    config = dataclasses.replace(PLAIN, reward_scaling="normalise")
    first, second = rollout(seed=5), rollout(seed=6)
    _, state, _ = signal(first, config)
    _, state, _ = ppo.signal(second, config, state)
    both = torch.cat([first.score, second.score]).double()
    close([state["reward_mean"], state["reward_var"]], [both.mean(), both.var(correction=0)], 1e-6)
    assert state["reward_count"] == 24 and state["iterations"] == 2


def test_first_minibatch_has_ratio_one_and_the_policy_gradient() -> None:
    """T46: same weights, so ratio 1, nothing clipped, and the gradient is that of -A log p."""
    given = problem("ppo", seed=1)
    logp = given.forwards["old_logp"].clone().requires_grad_()
    total, metrics = ppo.policy_loss({**given.forwards, "policy_logp": logp}, given.batch, given.config)
    assert number(metrics["ratio"]) == 1 and number(metrics["clip_fraction"]) == 0
    assert number(metrics["drift"]) == 0 and number(metrics["approx_kl"]) == 0
    total.backward()
    mask = given.batch.mask
    close(logp.grad, torch.where(mask, -given.forwards["advantages"], 0.0) / mask.sum())


def test_metrics_of_a_step() -> None:
    """ratio 1.5 and 0.6 against clip 0.2: one of the two clipped; KL by k3 of the old policy's samples."""
    mask = tensor([[True, True, False]])
    old = tensor([[-1.0, -1.0, -1.0]])
    forwards = {
        "policy_logp": old + tensor([[1.5, 0.6, 7.0]]).log(),
        "old_logp": old,
        "advantages": tensor([[1.0, 1.0, 9.0]]),
        "policy_entropy": tensor([[2.0, 4.0, 9.0]]),
        "value": tensor([[1.0, 1.0, 9.0]]),
        "old_value": tensor([[0.0, 0.0, 0.0]]),
        "returns": tensor([[2.0, -2.0, 9.0]]),
    }
    total, metrics = ppo.loss(forwards, batch_of(mask), PLAIN)
    k3 = lambda ratio: ratio - 1 - math.log(ratio)
    wanted = {
        "policy_loss": (-1.2 - 0.6) / 2,
        "ratio": 2.1 / 2,
        "clip_fraction": 0.5,
        "approx_kl": (k3(1.5) + k3(0.6)) / 2,
        "drift": (math.log(1.5) - math.log(0.6)) / 2,
        "entropy": 3.0,
        "value_loss": (3.24 + 9) / 4,
        "value_clip_fraction": 0.5,
    }
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        close(number(metrics[name]), value)
    close(total, (-1.2 - 0.6) / 2 + 0.5 * (3.24 + 9) / 4)
    without = {key: value for key, value in forwards.items() if key != "policy_entropy"}
    assert "entropy" not in ppo.policy_loss(without, batch_of(mask), PLAIN)[1]


def test_entropy_bonus_and_its_clip() -> None:
    """T86: entropy 2 and 4 under clip 3 earn 2 and 3; the clip must be able to act."""
    mask = tensor([[True, True]])
    zero = torch.zeros(1, 2)
    forwards = {"policy_logp": zero, "old_logp": zero, "advantages": zero, "policy_entropy": tensor([[2.0, 4.0]])}
    free = dataclasses.replace(PLAIN, entropy_coef=0.1)
    close(ppo.policy_loss(forwards, batch_of(mask), free)[0], -0.1 * 3)
    close(ppo.policy_loss(forwards, batch_of(mask), dataclasses.replace(free, entropy_clip=3.0))[0], -0.1 * 2.5)
    shipped = dataclasses.replace(free, entropy_clip=35.0)  # the released default; ln 32000 = 10.37
    with pytest.raises(ValueError, match=r"entropy_clip 35.0 never acts: 32000 tokens have at most 10\.3735 nats"):
        ppo.check(shipped, 32_000)
    ppo.check(dataclasses.replace(free, entropy_clip=10.0), 32_000)
    ppo.check(ppo.Config(), 2)
    with pytest.raises(ValueError, match="never acts"):
        ppo.check(dataclasses.replace(free, entropy_clip=math.log(64)), 64)


def test_value_loss_alone_is_the_critics_part() -> None:
    """Critic warm-up: policy and value part add up to the loss, and only the critic gets a gradient."""
    given = problem("ppo", seed=2)
    leaves = {key: value.clone().requires_grad_() for key, value in given.forwards.items()}
    value, _ = ppo.value_loss(leaves, given.batch, given.config)
    policy, _ = ppo.policy_loss(leaves, given.batch, given.config)
    close((value + policy).detach(), given.loss()[0])
    value.backward()
    assert leaves["policy_logp"].grad is None and leaves["value"].grad.any()
    double, _ = ppo.value_loss(leaves, given.batch, dataclasses.replace(given.config, vf_coef=1.0))
    close(double.detach(), 2 * value.detach())


def test_a_rollout_without_values_is_refused() -> None:
    given = dataclasses.replace(rollout(), value=None)
    with pytest.raises(ValueError, match="the rollout has no value"):
        signal(given, ppo.Config())


def test_small_settings_are_settings() -> None:
    """A target under 1 nat is one; an entropy clip under 1 without a bonus does nothing, like any other."""
    assert ppo.Config(kl_target=0.5).kl_target == 0.5
    with pytest.raises(ValueError, match="entropy_clip without entropy_coef"):
        ppo.Config(entropy_clip=0.5, entropy_coef=0.0)


def test_equal_scores_keep_their_sign_when_scaled() -> None:
    """Their deviation is 0: eps is added to it, never taken from it."""
    config = dataclasses.replace(PLAIN, reward_scaling="scale")
    found, _ = processed([2.0] * 10, config)
    assert bool((found > 0).all())


def test_nearly_equal_scores_are_damped_not_blown_up() -> None:
    """A deviation of the size of eps: eps is added to it, never taken from it."""
    config = dataclasses.replace(PLAIN, reward_scaling="normalise")
    found, _ = processed([0.0, 2e-8] * 10, config)
    assert float(found.abs().max()) < 1
