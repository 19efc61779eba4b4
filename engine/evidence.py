"""What is kept of a batch of rollouts: numbers for the curve, rows for the artifact, and the batch that broke a run."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from configs.recipes import Online
from engine.rollouts import Rolled, judged
from engine.template import Chat

LONGEST_PERIOD = 8  # tokens: a response that repeats a longer phrase is not called a loop


def metrics(rolled: Rolled) -> dict[str, float]:
    """What the method's own metrics leave out: entropy, perplexities, spread of scores and lengths, repetition."""
    mask, score = rolled.rollout.mask, rolled.rollout.score
    lengths = mask.sum(-1).float()
    gaps = (rolled.sampled_logp - rolled.rollout.old_logp)[mask].abs()
    nll = [-float(logp[mask].mean()) for logp in (rolled.rollout.old_logp, rolled.rollout.reference_logp)]
    found = {
        "score_min": float(score.min()),
        "score_max": float(score.max()),
        "score_p95": float(score.quantile(0.95)),
        "length_p95": float(lengths.quantile(0.95)),
        "mute": float(((lengths == 1) & rolled.rollout.finished).float().mean()),
        "entropy": float(rolled.entropy[mask].mean()),
        "perplexity": math.exp(nll[0]),
        "reference_perplexity": math.exp(min(nll[1], 700.0)),
        "sampler_drift": float(gaps.mean()),
        "sampler_drift_p99": float(gaps.quantile(0.99)) if gaps.numel() < 1 << 24 else float(gaps.max()),
        **repetition([r.token_ids for r in rolled.responses], [r.finish == "eos" for r in rolled.responses]),
    }
    for kind in judged(rolled.scores):
        found[kind] = float(np.mean([v for v in rolled.scores[kind] if v is not None]))
    return found


def repetition(responses: Sequence[Sequence[int]], finished: Sequence[bool]) -> dict[str, float]:
    """distinct_2: mean share of different pairs of tokens inside a response; loops: share that repeat up to the limit.

    A loop is an unfinished response whose second half has a period of at most LONGEST_PERIOD tokens.
    """
    shares, loops = [], 0
    for ids, ended in zip(responses, finished):
        if len(ids) > 1:
            shares.append(len(set(pairwise(ids))) / (len(ids) - 1))
        if not ended and len(ids) >= 4:
            half = ids[len(ids) // 2 :]
            longest = min(LONGEST_PERIOD, len(half) // 2)
            loops += any(list(half[p:]) == list(half[:-p]) for p in range(1, longest + 1))
    return {"distinct_2": float(np.mean(shares)) if shares else 1.0, "loops": loops / max(1, len(responses))}


def scored_rows(
    rolled: Rolled, chat: Chat, recipe: Online, policy: str, rewards: str, source: str
) -> list[dict[str, Any]]:
    """The rollouts as Scored rows. policy, rewards: names of the weights that answered and that scored."""
    return [
        {
            "prompt_id": row["id"],
            "k": i % recipe.k,
            "messages": row["messages"],
            "category": row["category"],
            "is_safety": row["is_safety"],
            "text": chat.text(response.token_ids),
            "token_ids": list(response.token_ids),
            "finish": response.finish,
            "policy": policy,
            "temperature": recipe.temperature,
            "source": source,
            "helpfulness": rolled.scores["helpfulness"][i],
            "safety": rolled.scores["safety"][i],
            "rewards": rewards,
        }
        for i, (row, response) in enumerate(zip(rolled.rows, rolled.responses))
    ]


def write_bad(out: Path, rows: Sequence[Mapping[str, Any]], number: int) -> Path:
    """Write the rollouts of a batch that broke the run beside the result; returns where."""
    path = out / "_beside" / "bad-rollouts.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"batch": number, "rows": rows}, indent=1) + "\n")
    return path


def write_alarm(out: Path, rows: Sequence[Mapping[str, Any]], number: int, alarms: Sequence[Mapping[str, Any]]) -> None:
    """Write the rollouts at which alarms rang among the results: what the policy had come to before it was put back."""
    found = {"batch": number, "alarms": alarms, "rows": rows}
    (out / f"alarm-{number:05d}.json").write_text(json.dumps(found, indent=1) + "\n")


def rollouts(rolled: Rolled) -> list[dict[str, Any]]:
    """A batch as rows of token ids with their scores."""
    return [
        {"prompt_id": row["id"], "prompt": list(prompt), "response": list(response), "score": score}
        for row, (prompt, response), score in zip(rolled.rows, rolled.pairs, rolled.rollout.score.tolist())
    ]


def unanswered(row: Mapping[str, Any], prompt: Sequence[int]) -> dict[str, Any]:
    """The same of a prompt that the policy could not answer."""
    return {"prompt_id": row["id"], "prompt": list(prompt), "response": [], "score": None}
