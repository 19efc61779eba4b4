"""Proximal policy optimisation from a reward score at the last token and a KL penalty at every token.

Every published trick is a switch of its own; PRESETS put them together as Llama 2, PPO-max and InstructGPT did.
Sources: Llama 2 (Touvron et al. 2023), 3.2.3; PPO-max (Zheng et al. 2023, "Secrets of RLHF part I"), figure 5 and 5.4;
"The N implementation details of RLHF with PPO". The terminal reward lies on EOS; some libraries put it one later.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics, Rollout, State
from methods.rollouts import rollout_metrics, signal_metrics, value_metrics

loop = "online"
unit = "token"
columns = ("prompt",)
forwards = ("policy_logp", "policy_entropy", "old_logp", "value", "old_value")  # and what `signal` returns

_FEW = 8  # scores, under which a batch's own mean and variance say nothing (METHODS 4.1)
_FEW_CLIP = 5.0


@dataclass(frozen=True)
class Config:
    """The defaults are the preset llama2. 0 switches a clip or a coefficient off."""

    kl_coef: float = 0.01  # Llama 2, 7B and 13B; 0.005 for 34B and 70B. The first value where kl_control = adaptive
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k1"  # METHODS 6.3: in a reward k1
    kl_control: Literal["fixed", "adaptive"] = "fixed"  # Llama 2
    kl_target: float = 6.0  # nats a response, adaptive only; Ziegler et al. 2019
    kl_horizon: float = 10_000.0  # responses, adaptive only; Ziegler et al. 2019
    missing_eos: Literal["replace", "subtract", "none"] = "replace"  # the score of a truncated response; METHODS 6.4
    missing_eos_value: float = 1.0  # replace: -1 after scaling (whiten: the batch's minimum instead); METHODS 6.4
    reward_scaling: Literal["whiten", "normalise", "scale", "none"] = "whiten"  # Llama 2: the batch's own statistics
    reward_clip: float = 0.0  # of the processed score; Llama 2 gives none
    whiten_rewards: bool = False  # token rewards to variance 1, mean kept; METHODS 6.6
    gamma: float = 1.0  # ours: Llama 2 gives none
    lam: float = 0.95  # ours: Llama 2 gives none
    whiten_advantages: bool = True  # over all tokens of the rollout batch; METHODS 6.1
    advantage_clip: float = 0.0  # Zheng et al. tested 0.5 and 0.12
    clip: float = 0.2  # Llama 2
    value_clip: float = 0.2  # ours: Llama 2 gives none
    vf_coef: float = 0.5  # of half the squared error; ours: Llama 2 gives none
    entropy_coef: float = 0.0  # off: Zheng et al. do not recommend it
    entropy_clip: float = 0.0  # nats: entropy above it earns nothing; must be < ln V to act

    def __post_init__(self) -> None:
        for name, options in _OPTIONS.items():
            if getattr(self, name) not in options:
                raise ValueError(f"ppo: {name} {getattr(self, name)!r}: want one of {', '.join(options)}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"ppo: {name} {getattr(self, name)}: want a number >= 0")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo: {name} {getattr(self, name)}: want a number in 0 .. 1")
        for name in ("kl_target", "kl_horizon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"ppo: {name} {getattr(self, name)}: want a number > 0")
        if self.clip >= 1:
            raise ValueError(f"ppo: clip {self.clip}: want a number in 0 .. 1, 1 - clip is the least ratio")
        if self.entropy_clip > 0 and self.entropy_coef == 0:
            raise ValueError("ppo: entropy_clip without entropy_coef does nothing: set both or neither")


_OPTIONS = {
    "kl_estimator": ("k1", "k2", "k3", "abs"),
    "kl_control": ("fixed", "adaptive"),
    "missing_eos": ("replace", "subtract", "none"),
    "reward_scaling": ("whiten", "normalise", "scale", "none"),
}
_NOT_NEGATIVE = (
    *("kl_coef", "missing_eos_value", "reward_clip", "advantage_clip", "clip", "value_clip", "vf_coef"),
    *("entropy_coef", "entropy_clip"),
)

# fmt: off
PRESETS = {
    # Llama 2, 3.2.3 (METHODS 4.2); what it leaves open is ours.
    "llama2": {
        "kl_coef": 0.01, "kl_estimator": "k1", "kl_control": "fixed", "missing_eos": "replace",
        "reward_scaling": "whiten", "reward_clip": 0.0, "whiten_rewards": False, "gamma": 1.0, "lam": 0.95,
        "whiten_advantages": True, "advantage_clip": 0.0, "clip": 0.2, "value_clip": 0.2, "vf_coef": 0.5,
        "entropy_coef": 0.0,
    },
    # Zheng et al. 2023, the starred rows of figure 5 and B.1 (METHODS 5.1 to 5.3); not their released script.
    "ppo-max": {
        "kl_coef": 0.05, "kl_estimator": "k1", "kl_control": "fixed", "missing_eos": "replace",
        "reward_scaling": "normalise", "reward_clip": 0.8, "whiten_rewards": False, "gamma": 1.0, "lam": 0.9,
        "whiten_advantages": False, "advantage_clip": 0.0, "clip": 0.2, "value_clip": 0.2, "vf_coef": 0.2,
        "entropy_coef": 0.0,
    },
    # The same authors' released English script (METHODS 5.3): reward scaling only, nothing clipped.
    "moss-script": {
        "kl_coef": 0.01, "kl_estimator": "k1", "kl_control": "fixed", "missing_eos": "none",
        "reward_scaling": "scale", "reward_clip": 0.0, "whiten_rewards": False, "gamma": 1.0, "lam": 0.95,
        "whiten_advantages": False, "advantage_clip": 0.0, "clip": 0.2, "value_clip": 0.2, "vf_coef": 1.0,
        "entropy_coef": 0.0,
    },
    # Ouyang et al. 2022, appendix C, from memory: the reward model's bias is set before, the score is used as it is.
    "instructgpt": {
        "kl_coef": 0.02, "kl_estimator": "k1", "kl_control": "fixed", "missing_eos": "none",
        "reward_scaling": "none", "reward_clip": 0.0, "whiten_rewards": False, "gamma": 1.0, "lam": 0.95,
        "whiten_advantages": True, "advantage_clip": 0.0, "clip": 0.2, "value_clip": 0.2, "vf_coef": 0.1,
        "entropy_coef": 0.0,
    },
}
# fmt: on

# The same presets' settings of the loop, named as in configs.recipes.Online. PPO-max has a language-model term whose
# weight the paper does not give (ours: 0.1); InstructGPT's 27.8 is from memory.
LOOP = {
    "llama2": {"batch_size": 512, "minibatch_size": 64, "epochs": 1, "ptx_weight": 0.0},
    "ppo-max": {
        "batch_size": 128,
        "minibatch_size": 32,
        "epochs": 1,
        "critic_head": "reward",
        "warmup_batches": 2,
        "warmup_steps": 20,
        "warmup_target": 0.2,
        "ptx_weight": 0.1,
    },
    "instructgpt": {"batch_size": 512, "minibatch_size": 64, "epochs": 1, "ptx_weight": 27.8},
}


def check(config: Config, vocab_size: int) -> None:
    """Raise ValueError where entropy_clip can never act: no distribution over V tokens has more than ln V nats."""
    if config.entropy_clip >= math.log(vocab_size):
        raise ValueError(
            f"ppo: entropy_clip {config.entropy_clip} never acts: {vocab_size} tokens have at most "
            f"{math.log(vocab_size):.4f} nats; want less, or 0"
        )


def initial_state(config: Config) -> State:
    """Running reward statistics and the KL coefficient before the first rollout: what a save point holds."""
    start = ops.Moments()
    return {
        "kl_coef": config.kl_coef,
        "reward_mean": start.mean,
        "reward_var": start.var,
        "reward_count": start.size,
        "iterations": 0.0,
    }


def process_score(score: Tensor, finished: Tensor, config: Config, moments: ops.Moments) -> tuple[Tensor, ops.Moments]:
    """Raw scores to what the last token earns: missing-EOS rule, scaling, clip. The batch sees itself in the statistics.

    Args:
        score: [B] raw. finished: [B] bool.
        moments: of all earlier raw scores; under `replace` truncated responses do not enter, their score is not used.

    Returns:
        processed score [B], new moments.
    """
    score, mode = score.float(), config.missing_eos
    if config.reward_scaling == "whiten":
        score = ops.replace_missing_eos(
            score, finished, "minimum" if mode == "replace" else mode, config.missing_eos_value
        )
        few = score.numel() < _FEW
        score = score.clamp(-_FEW_CLIP, _FEW_CLIP) if few else ops.whiten(score)
    else:
        if mode == "subtract":
            score = ops.replace_missing_eos(score, finished, mode, config.missing_eos_value)
        moments = ops.update_moments(moments, score[finished] if mode == "replace" else score)
        if config.reward_scaling == "normalise":
            score = (score - moments.mean) / (moments.std + ops.EPS)
        elif config.reward_scaling == "scale":
            score = score / (moments.std + ops.EPS)
        if mode == "replace":
            score = ops.replace_missing_eos(score, finished, mode, config.missing_eos_value)
    if config.reward_clip > 0:
        score = score.clamp(-config.reward_clip, config.reward_clip)
    return score, moments


def signal(rollout: Rollout, config: Config, state: State) -> tuple[dict[str, Tensor], State, Metrics]:
    """Scores to token rewards, advantages and returns.

    Args:
        rollout: of all ranks; needs `value`.

    Returns:
        {rewards, advantages, returns} [B, R], 0 outside the mask; the next state; metrics.

    Raises:
        ValueError: no value, so no critic.
    """
    if rollout.value is None:
        raise ValueError("ppo: the rollout has no value: want the critic's [B, R]")
    mask = rollout.mask
    moments = ops.Moments(state["reward_mean"], state["reward_var"], state["reward_count"])
    score, moments = process_score(rollout.score, rollout.finished, config, moments)
    kl = ops.kl(rollout.old_logp, rollout.reference_logp, mask, config.kl_estimator)
    rewards = ops.token_rewards(score, kl, mask, state["kl_coef"])
    if config.whiten_rewards:
        rewards = ops.whiten(rewards, mask, shift_mean=False)
    raw, returns = ops.gae(rewards, rollout.value, mask, config.gamma, config.lam)
    advantages = ops.whiten(raw, mask) if config.whiten_advantages else raw
    if config.advantage_clip > 0:
        advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
    metrics = {
        **rollout_metrics(rollout),
        **signal_metrics(rollout, score, rewards, raw),
        **value_metrics(rollout, returns),
        "kl_coef": ops.measure(mask.new_tensor(state["kl_coef"], dtype=torch.float32), 1.0),
    }
    kl_coef = state["kl_coef"]
    if config.kl_control == "adaptive":
        total, count = metrics["kl"]
        kl_coef = ops.adaptive_kl_coef(
            kl_coef, float(total / count), mask.shape[0], config.kl_target, config.kl_horizon
        )
    after = {
        "kl_coef": kl_coef,
        "reward_mean": moments.mean,
        "reward_var": moments.var,
        "reward_count": moments.size,
        "iterations": state["iterations"] + 1,
    }
    return {"rewards": rewards, "advantages": advantages, "returns": returns}, after, metrics


def policy_loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Clipped surrogate minus the entropy bonus.

    Args:
        forwards: policy_logp, old_logp, advantages [B, R]; policy_entropy [B, R] where entropy_coef > 0.
        batch: count = response tokens of the optimizer step.

    Returns:
        loss [] a token; metrics a token. On the first minibatch of an iteration drift and clip_fraction are 0.
    """
    mask, tokens = batch.mask, batch.mask.sum()
    logp, old_logp = forwards["policy_logp"].float(), forwards["old_logp"].float()
    surrogate, ratio, clipped = ops.clipped_surrogate(logp, old_logp, forwards["advantages"], config.clip)
    total = ops.masked_sum(surrogate, mask)
    moved = ops.kl(old_logp, logp, mask, "k3")  # KL(old || new) on the old policy's samples
    metrics = {
        "policy_loss": ops.measure(total, tokens),
        "ratio": ops.measure(ops.masked_sum(ratio, mask), tokens),
        "clip_fraction": ops.measure(ops.masked_sum(clipped, mask), tokens),
        "approx_kl": ops.measure(moved.sum(), tokens),
        "drift": ops.measure(ops.masked_sum((logp - old_logp).abs(), mask), tokens),
    }
    if "policy_entropy" in forwards:
        metrics["entropy"] = ops.measure(ops.masked_sum(forwards["policy_entropy"], mask), tokens)
    if config.entropy_coef > 0:
        entropy = forwards["policy_entropy"].float()
        bonus = entropy.clamp(max=config.entropy_clip) if config.entropy_clip > 0 else entropy
        total = total - config.entropy_coef * ops.masked_sum(bonus, mask)
    return ops.share(total, batch.count), metrics


def value_loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """The critic's part, vf_coef included: alone in the critic's warm-up.

    Args:
        forwards: value, old_value, returns [B, R].
        batch: count = response tokens of the optimizer step.
    """
    mask, tokens = batch.mask, batch.mask.sum()
    error, clipped = ops.clipped_value_loss(
        forwards["value"], forwards["old_value"], forwards["returns"], config.value_clip
    )
    total = ops.masked_sum(error, mask)
    metrics = {
        "value_loss": ops.measure(total, tokens),
        "value_clip_fraction": ops.measure(ops.masked_sum(clipped, mask), tokens),
    }
    return config.vf_coef * ops.share(total, batch.count), metrics


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Policy and value part in one: the two models share no parameter, so one backward pass serves both.

    Args:
        forwards: policy_logp, old_logp, advantages, value, old_value, returns, policy_entropy [B, R].
        batch: count = response tokens of the optimizer step.
    """
    policy, policy_metrics = policy_loss(forwards, batch, config)
    value, critic_metrics = value_loss(forwards, batch, config)
    return policy + value, {**policy_metrics, **critic_metrics}
