"""The maths that methods share, in fp32: log-probs, reductions, KL, whitening, GAE, rewards.

Letters: B responses, R response tokens, L tokens of a whole row, V vocabulary. A mask is 1 on what counts.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3", "abs"]
SAFETY_THRESHOLD = math.log(0.15 / 0.85)  # logit(0.15) = -1.7346 raw (Llama 2, 3.2.3)
EPS = 1e-8
_MARGINS = {"none": (0.0, 0.0, 0.0, 0.0), "small": (0.0, 1 / 3, 2 / 3, 1.0), "large": (0.0, 1.0, 2.0, 3.0)}


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of given tokens under aligned logits, in fp32 (bf16 softmax errs by 0.016 nats a token on average).

    Args:
        logits: [..., V] that score `tokens` [...] int64: already shifted.
        temperature: the one that the responses were sampled at.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def next_token_logps(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob of every token but the first: [B, L-1], entry t scores ids[:, t+1] by logits[:, t]."""
    return token_logps(logits[:, :-1], ids[:, 1:], temperature)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each position's distribution in nats, fp32: [..., V] -> [...]."""
    logp = (logits.float() / temperature).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the mask, []. What lies outside it may be anything, NaN too."""
    return torch.where(mask, x.float(), 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, []; 0 of an empty one."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def sequence_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of each response's tokens: [B, R] -> [B]."""
    return torch.where(mask, x.float(), 0.0).sum(-1)


def sequence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of each response's tokens: [B, R] -> [B]; 0 of an empty response."""
    return sequence_sum(x, mask) / mask.sum(-1).clamp(min=1)


def share(total: Tensor, count: Tensor) -> Tensor:
    """A sum as its share of the step's denominator; the sum itself, which is 0, where the whole step counts nothing."""
    return total / torch.where(count > 0, count, 1.0)


def measure(total: Tensor, count: Tensor | float) -> tuple[Tensor, Tensor]:
    """A metric: (sum, count), detached fp32."""
    return total.detach().float(), torch.as_tensor(count, device=total.device).float()


def last_index(mask: Tensor) -> Tensor:
    """Index of each response's last token: [B, R] -> [B] int64."""
    return (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).argmax(-1)


def margin(grade: Tensor, kind: Literal["none", "small", "large"]) -> Tensor:
    """Margin of each grade 0 .. 3: small 0, 1/3, 2/3, 1; large 0, 1, 2, 3. Source: Llama 2, table 27."""
    return grade.new_tensor(_MARGINS[kind], dtype=torch.float32)[grade.long()]


class Piecewise(NamedTuple):
    """Two reward models as one: `score` [B] fp32, `branch` [B] int64 (0 under the threshold), `by_safety` [B] bool."""

    score: Tensor
    branch: Tensor
    by_safety: Tensor


def piecewise(helpfulness: Tensor, safety: Tensor, is_safety: Tensor, threshold: float = SAFETY_THRESHOLD) -> Piecewise:
    """Combine raw scores: safety decides on safety prompts and under the threshold (strictly), helpfulness elsewhere.

    Args:
        helpfulness, safety: [B] raw scores. Never through a sigmoid: sigmoid(17) is 1 in fp32 and its logit infinite.
        is_safety: [B] bool, tag of the prompt.

    Source: Llama 2, 3.2.3; responses of one prompt are compared by (branch, score), which is ours.
    """
    under = safety.float() < threshold
    by_safety = is_safety | under
    score = torch.where(by_safety, safety.float(), helpfulness.float())
    return Piecewise(score, (is_safety | ~under).long(), by_safety)


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Which pairs are ranked right: [B] fp32 of 0 and 1. A tie is wrong; a margin never enters. Source: RewardBench."""
    return (chosen > rejected).float()


def best_of_credit(scores: Tensor) -> Tensor:
    """Credit for candidate 0 among K, [B, K] -> [B]: 1/n if it is one of n that share the maximum. Source: RewardBench 2."""
    top = scores == scores.max(-1, keepdim=True).values
    return top[:, 0] / top.sum(-1)


def replace_missing_eos(
    score: Tensor, finished: Tensor, mode: Literal["none", "replace", "subtract", "minimum"], value: float
) -> Tensor:
    """Scores [B] with the rule for responses without EOS: replace by -value, subtract value, or the batch's minimum."""
    if mode == "none":
        return score
    to = {"replace": torch.full_like(score, -value), "subtract": score - value, "minimum": score.min().expand_as(score)}
    return torch.where(finished, score, to[mode])


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards [B, R]: -kl_coef * kl on every token, the score on the last one (EOS, or where it was cut)."""
    rewards = torch.where(mask, -kl_coef * kl.float(), 0.0)
    at = last_index(mask).unsqueeze(-1)
    return rewards.scatter_add(-1, at, score.float().unsqueeze(-1))


def kl(logp: Tensor, reference_logp: Tensor, mask: Tensor, estimator: KlEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) on the policy's own samples, 0 outside the mask: [B, R].

    k1 is unbiased and signed, k2 biased and >= 0, k3 unbiased and >= 0. As a LOSS only k2 has the gradient of this KL:
    k1's is 0 in expectation, k3's belongs to the other direction. Source: Schulman, "Approximating KL divergence".
    """
    gap = torch.where(mask, logp.float() - reference_logp.float(), 0.0)
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return gap.square() / 2
    if estimator == "k3":
        return gap + torch.expm1(-gap)
    return gap.abs()


def adaptive_kl_coef(kl_coef: float, sequence_kl: float, samples: int, target: float, horizon: float) -> float:
    """Next coefficient of a proportional controller, kept in 1e-4 .. 10.

    Args:
        sequence_kl: mean over responses of the SUM of k1 over their tokens.
        samples: responses in the rollout batch.

    Source: Ziegler et al. 2019, 2.2; the bounds are ours.
    """
    error = min(max(sequence_kl / target - 1, -0.2), 0.2)
    return min(max(kl_coef * (1 + error * samples / horizon), 1e-4), 10.0)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the policy: exact for continuous scores, else an upper bound. Source: Gao et al. 2022."""
    return math.log(n) - (n - 1) / n


def best_of_n_mean(gold: Sequence[float], n: int) -> float:
    """Unbiased E[gold of the best of n by proxy] from N >= n responses, `gold` sorted by ascending proxy score.

    Raises:
        ValueError: fewer than n responses.
    """
    total = len(gold)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} from {total} responses: want 1 <= n <= {total}")
    return sum(math.comb(i, n - 1) * value for i, value in enumerate(gold)) / math.comb(total, n)


def whiten(x: Tensor, mask: Tensor | None = None, *, shift_mean: bool = True, eps: float = EPS) -> Tensor:
    """Scale to variance 1 over the mask (biased, eps inside the root), and to mean 0 unless `shift_mean` is False.

    Outside the mask the result is 0. Source: biased and global as in "The N implementation details"; METHODS 6.6.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    mean = masked_mean(x, mask)
    centred = x.float() - mean
    scaled = centred * torch.rsqrt(masked_mean(centred.square(), mask) + eps)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


class Moments(NamedTuple):
    """Running mean and biased variance of `size` numbers, in Python floats (fp64) so that a save point holds them."""

    mean: float = 0.0
    var: float = 1.0
    size: float = 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 before there are two numbers."""
        return math.sqrt(self.var * self.size / (self.size - 1)) if self.size > 1 else 1.0


def update_moments(moments: Moments, x: Tensor) -> Moments:
    """Fold a batch [N] in; an empty one changes nothing. Source: Chan et al. 1979; the first batch sets all."""
    if x.numel() == 0:
        return moments
    x = x.double()
    new, var = float(x.mean()), float(x.var(correction=0))
    total = moments.size + x.numel()
    delta = new - moments.mean
    spread = moments.var * moments.size + var * x.numel() + delta**2 * moments.size * x.numel() / total
    return Moments(moments.mean + delta * x.numel() / total, spread / total, total)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; nothing is bootstrapped after the last token, values at pads are never read.

    Args:
        rewards, values: [B, R].

    Returns:
        advantages [B, R], returns = advantages + values [B, R], both 0 outside the mask.

    Source: Schulman et al. 2015, equation 16.
    """
    values, rewards = torch.where(mask, values.float(), 0.0), torch.where(mask, rewards.float(), 0.0)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * lam * following
        next_value = values[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask, []: 1 is a perfect critic, 0 a constant one."""
    error = returns.float() - values.float()
    rest = masked_mean((error - masked_mean(error, mask)).square(), mask)
    spread = masked_mean((returns.float() - masked_mean(returns, mask)).square(), mask)
    return 1 - rest / (spread + EPS)


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's pessimistic surrogate per token, to be minimised; `clip` 0 leaves the ratio free.

    Returns:
        loss, ratio, clipped (bool: the clip decided), all of the arguments' shape.

    Source: Schulman et al. 2017, equation 7; the exponent is kept in +-20.
    """
    ratio = (logp.float() - old_logp.float()).clamp(-20.0, 20.0).exp()
    free = -advantages * ratio
    if clip == 0:
        return free, ratio, torch.zeros_like(free, dtype=torch.bool)
    held = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, held), ratio, held > free


def clipped_value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared error per token, the larger of the free and the clipped one; `clip` 0 leaves the value free.

    Returns:
        loss, clipped (bool), of the arguments' shape.
    """
    free = (value.float() - returns).square()
    if clip == 0:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    near = old_value.float() + (value.float() - old_value.float()).clamp(-clip, clip)
    held = (near - returns).square()
    return torch.maximum(free, held) / 2, held > free
