"""Every loss once more, in NumPy float64 and plain loops, written from the formulas of METHODS and not from the code."""

import math

import numpy as np

F = np.ndarray


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x - math.exp(x)


def response_sum(x: F, mask: F, b: int) -> float:
    return float(sum(x[b, t] for t in range(mask.shape[1]) if mask[b, t]))


def length(mask: F, b: int) -> int:
    return int(sum(mask[b]))


def rows(group: F) -> list[list[int]]:
    return [[b for b in range(len(group)) if group[b] == g] for g in sorted(set(group.tolist()))]


def pairs(group: F, rank: F) -> list[tuple[int, int]]:
    return [(min(row, key=lambda b: rank[b]), max(row, key=lambda b: rank[b])) for row in rows(group)]


def sft(f: dict[str, F], d: dict[str, F], c) -> float:
    total = sum(response_sum(f["policy_logp"], d["mask"], b) for b in range(len(d["mask"])))
    return -total / d["mask"].sum()


pretrain = rejection = filtered = conditional = steerlm = sft


def rwr(f: dict[str, F], d: dict[str, F], c) -> float:
    total = sum(d["weight"][b] * response_sum(f["policy_logp"], d["mask"], b) for b in range(len(d["mask"])))
    return -total / d["mask"].sum()


def reward(f: dict[str, F], d: dict[str, F], c) -> float:
    step = {"none": 0.0, "small": 1 / 3, "large": 1.0}[c.margin]
    found = pairs(d["group"], d["rank"])
    total = 0.0
    for w, lo in found:
        total -= log_sigmoid(f["reward"][w] - f["reward"][lo] - step * d["grade"][w])
        for b in (w, lo):
            if d["label_mask"][b, 0]:
                right = f["reward"][b] if d["label"][b, 0] else -f["reward"][b]
                total -= c.safety_weight * 0.5 * log_sigmoid(right)
    return total / len(found)


def reward_ranking(f: dict[str, F], d: dict[str, F], c) -> float:
    total, groups = 0.0, rows(d["group"])
    for row in groups:
        each = [
            -log_sigmoid(f["reward"][i] - f["reward"][j]) for i in row for j in row if d["score"][i] > d["score"][j]
        ]
        total += sum(each) / len(each) if each else 0.0
    return total / len(groups)


def reward_pointwise(f: dict[str, F], d: dict[str, F], c) -> float:
    total = 0.0
    for b in range(len(d["rank"])):
        if c.verdict == "chosen":
            yes, known = d["rank"][b] == 0, True
        else:
            yes, known = d["label"][b, 0] == 1, d["label_mask"][b, 0]
        total -= log_sigmoid(f["reward"][b] if yes else -f["reward"][b]) if known else 0.0
    return total / len(d["rank"])


def reward_attributes(f: dict[str, F], d: dict[str, F], c) -> float:
    known = d["label_mask"]
    return float(((f["reward"] - d["label"]) ** 2)[known].sum() / known.sum())


def _h(f: dict[str, F], d: dict[str, F], averaged: bool, reference: bool = True) -> list[float]:
    def ratio(b: int) -> float:
        gap = response_sum(f["policy_logp"] - (f["reference_logp"] if reference else 0), d["mask"], b)
        return gap / length(d["mask"], b) if averaged else gap

    return [ratio(w) - ratio(lo) for w, lo in pairs(d["group"], d["rank"])]


def dpo_pair(h: float, kind: str, beta: float, eps: float) -> float:
    if kind in ("sigmoid", "sigmoid-lengthnorm"):
        return -log_sigmoid(beta * h)
    if kind == "cdpo":
        return -(1 - eps) * log_sigmoid(beta * h) - eps * log_sigmoid(-beta * h)
    if kind == "robust":
        return (-(1 - eps) * log_sigmoid(beta * h) + eps * log_sigmoid(-beta * h)) / (1 - 2 * eps)
    if kind in ("ipo", "ipo-sum"):
        return (h - 1 / (2 * beta)) ** 2
    return max(0.0, 1 - beta * h)


def dpo(f: dict[str, F], d: dict[str, F], c) -> float:
    h = _h(f, d, c.loss in ("ipo", "sigmoid-lengthnorm"))
    return sum(dpo_pair(x, c.loss, c.beta, c.label_smoothing) for x in h) / len(h)


def rso(f: dict[str, F], d: dict[str, F], c) -> float:
    h = _h(f, d, False, reference=c.loss != "hinge")
    kind = "sigmoid" if c.loss == "sigmoid-norm" else "hinge"
    return sum(dpo_pair(x, kind, c.gamma, 0) for x in h) / len(h)


def curriculum_dpo(f: dict[str, F], d: dict[str, F], c) -> float:
    p = {"easy-to-hard": d["progress"], "hard-to-easy": 1 - d["progress"], "mixed": c.hard_share}[c.direction]
    total, h = 0.0, _h(f, d, False)
    for x, (w, _) in zip(h, pairs(d["group"], d["rank"])):
        hard = d["grade"][w] < c.easy_grade
        drawn = p / c.hard_share if hard else (1 - p) / (1 - c.hard_share)
        total += dpo_pair(x, c.loss, c.beta, 0) * (drawn if c.by == "weight" else 1)
    return total / len(h)


def rrhf(f: dict[str, F], d: dict[str, F], c) -> float:
    total, groups = 0.0, rows(d["group"])
    for row in groups:
        p = {b: response_sum(f["policy_logp"], d["mask"], b) / length(d["mask"], b) for b in row}
        for i in row:
            for j in row:
                if d["score"][i] < d["score"][j]:
                    total += c.rank_coef * max(0.0, p[i] - p[j])
        best = [b for b in row if d["score"][b] == max(d["score"][row])]
        total -= c.sft_coef * sum(response_sum(f["policy_logp"], d["mask"], b) for b in best) / len(best)
    return total / len(groups)


def pro(f: dict[str, F], d: dict[str, F], c) -> float:
    total, groups = 0.0, rows(d["group"])
    for row in groups:
        ordered = sorted(row, key=lambda b: -d["score"][b])  # stable, as ranks are
        s = [response_sum(f["policy_logp"], d["mask"], b) / length(d["mask"], b) for b in ordered]
        r = [d["score"][b] for b in ordered]
        for k in range(len(ordered) - 1):
            sharp = [r[k] - r[i] for i in range(k + 1, len(ordered))]
            own = math.exp(s[k] * max(sharp))
            total -= math.log(own / (own + sum(math.exp(s[k + 1 + i] * t) for i, t in enumerate(sharp))))
        total -= c.sft_coef * (len(ordered) - 1) ** 2 * response_sum(f["policy_logp"], d["mask"], ordered[0])
    return total / len(groups)


def surrogate(ratio: float, advantage: float, clip: float) -> float:
    clipped = min(max(ratio, 1 - clip), 1 + clip) if clip else ratio
    return max(-advantage * ratio, -advantage * clipped)


def _tokens(mask: F):
    return [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]]


def ppo(f: dict[str, F], d: dict[str, F], c) -> float:
    total, tokens = 0.0, _tokens(d["mask"])
    for b, t in tokens:
        total += surrogate(math.exp(f["policy_logp"][b, t] - f["old_logp"][b, t]), f["advantages"][b, t], c.clip)
        v, old, target = f["value"][b, t], f["old_value"][b, t], f["returns"][b, t]
        near = min(max(v, old - c.value_clip), old + c.value_clip) if c.value_clip else v
        total += c.vf_coef * 0.5 * max((v - target) ** 2, (near - target) ** 2)
        entropy = f["policy_entropy"][b, t]
        total -= c.entropy_coef * (min(entropy, c.entropy_clip) if c.entropy_clip else entropy)
    return total / len(tokens)


def remax(f: dict[str, F], d: dict[str, F], c) -> float:
    tokens = _tokens(d["mask"])
    return -sum(f["advantages"][b, t] * f["policy_logp"][b, t] for b, t in tokens) / len(tokens)


def rloo(f: dict[str, F], d: dict[str, F], c) -> float:
    total = 0.0
    for b in range(len(d["mask"])):
        ratio = math.exp(response_sum(f["policy_logp"] - f["old_logp"], d["mask"], b))
        total += surrogate(ratio, f["advantages"][b, 0], c.clip)
    return total / len(d["mask"])


def grpo(f: dict[str, F], d: dict[str, F], c) -> float:
    total = 0.0
    for b in range(len(d["mask"])):
        inside = 0.0
        for t in range(d["mask"].shape[1]):
            if d["mask"][b, t]:
                gap = f["policy_logp"][b, t] - f["reference_logp"][b, t]
                kl = gap**2 / 2 if c.kl_estimator == "k2" else math.exp(-gap) - 1 + gap
                ratio = math.exp(f["policy_logp"][b, t] - f["old_logp"][b, t])
                kl *= ratio if c.kl_estimator == "k3-weighted" else 1
                inside += surrogate(ratio, f["advantages"][b, t], c.clip) + c.kl_coef * kl
        total += inside / (c.length_constant or length(d["mask"], b))
    return total / len(d["mask"])


def gae(rewards: F, values: F, mask: F, gamma: float, lam: float) -> F:
    """The sum over the future itself, not a recursion."""
    out = np.zeros_like(rewards)
    for b in range(mask.shape[0]):
        n = length(mask, b)
        value = [*values[b, :n], 0.0]
        delta = [rewards[b, t] + gamma * value[t + 1] - value[t] for t in range(n)]
        for t in range(n):
            out[b, t] = sum((gamma * lam) ** i * delta[t + i] for i in range(n - t))
    return out


def whiten(x: F, mask: F) -> F:
    inside = x[mask]
    return np.where(mask, (x - inside.mean()) / np.sqrt(inside.var() + 1e-8), 0.0)


def ppo_signal(r: dict[str, F], c) -> tuple[F, F]:
    """Advantages and returns of the first iteration under reward_scaling whiten, normalise, scale or none."""
    score = r["score"].copy()
    finished = r["finished"]
    if c.missing_eos == "subtract":
        score[~finished] -= c.missing_eos_value
    if c.reward_scaling == "whiten":
        if c.missing_eos == "replace":
            score[~finished] = r["score"].min()
        score = (score - score.mean()) / math.sqrt(score.var() + 1e-8)
    else:
        seen = score[finished] if c.missing_eos == "replace" else score
        deviation = seen.std(ddof=1)
        if c.reward_scaling == "normalise":
            score = (score - seen.mean()) / deviation
        elif c.reward_scaling == "scale":
            score = score / deviation
        if c.missing_eos == "replace":
            score[~finished] = -c.missing_eos_value
    if c.reward_clip:
        score = np.clip(score, -c.reward_clip, c.reward_clip)
    mask = r["mask"]
    gap = r["old_logp"] - r["reference_logp"]
    kl = {"k1": gap, "k2": gap**2 / 2, "k3": np.exp(-gap) - 1 + gap, "abs": np.abs(gap)}[c.kl_estimator]
    rewards = np.where(mask, -c.kl_coef * kl, 0.0)
    for b in range(len(score)):
        rewards[b, length(mask, b) - 1] += score[b]
    if c.whiten_rewards:
        mean = rewards[mask].mean()
        rewards = np.where(mask, whiten(rewards, mask) + mean, 0.0)
    advantages = gae(rewards, r["value"], mask, c.gamma, c.lam)
    returns = np.where(mask, advantages + r["value"], 0.0)
    if c.whiten_advantages:
        advantages = whiten(advantages, mask)
    if c.advantage_clip:
        advantages = np.clip(advantages, -c.advantage_clip, c.advantage_clip)
    return advantages, returns


def remax_signal(r: dict[str, F], c) -> F:
    score, greedy = r["score"], r["baseline_score"]
    if c.missing_eos == "minimum":
        least = score.min()
        score = np.where(r["finished"], score, least)
        greedy = np.where(r["baseline_finished"], greedy, least)
    out = np.zeros(r["mask"].shape)
    for b in range(len(score)):
        n = length(r["mask"], b)
        gain = score[b] - greedy[b]
        gain = min(max(gain, -c.clip), c.clip) if c.clip else gain
        for t in range(n):
            out[b, t] = c.gamma ** (n - t) * gain - c.kl_coef * (r["old_logp"][b, t] - r["reference_logp"][b, t])
    return out


def _group_advantage(r: dict[str, F], total: F, of) -> F:
    out = np.zeros(r["mask"].shape)
    for row in rows(r["group"]):
        for b in row:
            out[b] = np.where(r["mask"][b], of(total[b], [total[i] for i in row if i != b], total[row]), 0.0)
    return out


def rloo_signal(r: dict[str, F], c) -> F:
    score = np.where(r["finished"], r["score"], r["score"].min())
    kl = [response_sum(r["old_logp"] - r["reference_logp"], r["mask"], b) for b in range(len(score))]
    return _group_advantage(r, score - c.kl_coef * np.array(kl), lambda own, others, _: own - np.mean(others))


def grpo_signal(r: dict[str, F], c) -> F:
    score = np.where(r["finished"], r["score"], r["score"].min())
    scale = lambda all_: all_.std(ddof=1) + 1e-4 if c.scale == "group" else 1.0
    return _group_advantage(r, score, lambda own, _, all_: (own - all_.mean()) / scale(all_))
