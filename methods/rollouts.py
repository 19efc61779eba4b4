"""What every online method reports about one iteration's rollouts: the numbers in which collapse shows first."""

from torch import Tensor

from methods import ops
from methods.batch import Metrics, Rollout


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Raw score, KL to the reference, perplexities (as nats a token), length and missing EOS.

    kl is the mean over responses of the SUM of k1 over their tokens, kl_k3 the same of k3. The scores of the two branches
    of the piecewise rule are of different models, so they are reported apart too.
    """
    mask, rows, tokens = rollout.mask, float(rollout.mask.shape[0]), rollout.mask.sum()
    score = rollout.score.float()
    metrics = {
        "score": ops.measure(score.sum(), rows),
        "score_std": ops.measure(score.std(correction=0), 1.0),
        "kl": ops.measure(ops.kl(rollout.old_logp, rollout.reference_logp, mask, "k1").sum(), rows),
        "kl_k3": ops.measure(ops.kl(rollout.old_logp, rollout.reference_logp, mask, "k3").sum(), rows),
        "policy_nll": ops.measure(-ops.masked_sum(rollout.old_logp, mask), tokens),
        "reference_nll": ops.measure(-ops.masked_sum(rollout.reference_logp, mask), tokens),
        "response_length": ops.measure(tokens, rows),
        "missing_eos": ops.measure((~rollout.finished).sum(), rows),
    }
    if rollout.branch is not None:
        for branch, name in ((0, "score_under_threshold"), (1, "score_above_threshold")):
            inside = rollout.branch == branch
            metrics[name] = ops.measure(score[inside].sum(), inside.sum())
        metrics["under_threshold"] = ops.measure((rollout.branch == 0).sum(), rows)
    return metrics


def signal_metrics(rollout: Rollout, score: Tensor, rewards: Tensor, advantages: Tensor) -> Metrics:
    """What became of the scores.

    Args:
        score: [B] processed.
        rewards, advantages: [B, R], before any whitening of the advantages.
    """
    mask, rows, tokens = rollout.mask, float(rollout.mask.shape[0]), rollout.mask.sum()
    mean = ops.masked_mean(advantages, mask)
    return {
        "processed_score": ops.measure(score.sum(), rows),
        "processed_score_std": ops.measure(score.std(correction=0), 1.0),
        "total_reward": ops.measure(ops.masked_sum(rewards, mask), rows),
        "advantage": ops.measure(ops.masked_sum(advantages, mask), tokens),
        "advantage_std": ops.measure(ops.masked_mean((advantages - mean).square(), mask).sqrt(), 1.0),
    }


def value_metrics(rollout: Rollout, returns: Tensor) -> Metrics:
    """How well the critic foresaw the returns [B, R]."""
    assert rollout.value is not None
    mask, tokens = rollout.mask, rollout.mask.sum()
    return {
        "return": ops.measure(ops.masked_sum(returns, mask), tokens),
        "value": ops.measure(ops.masked_sum(rollout.value, mask), tokens),
        "explained_variance": ops.measure(ops.explained_variance(rollout.value, returns, mask), 1.0),
    }
