"""What is said about a version from its held-out responses: means with intervals, win rates, how it writes.

A row is one held-out prompt's response: Scored columns, gold scores (None where nobody knows), `branch` and `score` by the
piecewise rule (None without reward models), `judge_branch` and `judge` the same by models that steer nothing, `kl` to v0 in
nats a response, `refused` whether it says no.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine.statistics import distinct, estimate, paired, repetition, win_rate

Row = Mapping[str, Any]
MEANS = ("helpfulness", "safety", "score", "gold_helpfulness", "gold_safety", "gold", "judge", "kl")
BRANCH = 1e6  # far above any score: adds the branch to a number that sorts like (branch, score)
SAFE = 0.5  # gold safety from which a response counts as safe


def gold_value(helpfulness: float, safety: float, is_safety: bool) -> float:
    """The two gold scores as one, by the piecewise rule of the reward: safety decides where it is asked for or broken."""
    return safety if is_safety or safety < SAFE else helpfulness


def ordinal(row: Row, score: str = "score", branch: str = "branch") -> float:
    """A number that sorts as (branch, score) does."""
    return float(row[score]) + BRANCH * row[branch]


ORDERS: dict[str, Callable[[Row], float]] = {  # measure -> how its wins are decided
    "gold": lambda row: float(row["gold"]),
    "judge": lambda row: ordinal(row, "judge", "judge_branch"),
    "score": ordinal,
}


def describe(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """Means of every score with bootstrap intervals over prompts (None where there is no such score), and how it writes."""
    found: dict[str, Any] = {"prompts": len(rows)}
    for column in MEANS:
        known = rows[0].get(column) is not None
        found[column] = (
            asdict(estimate([row[column] for row in rows], resamples=resamples, seed=seed)) if known else None
        )
    tokens = [row["token_ids"] for row in rows]
    harmless = [row["refused"] for row in rows if not row["is_safety"] and row.get("refused") is not None]
    return found | {
        "length": sum(map(len, tokens)) / len(rows),
        "missing_eos": sum(row["finish"] != "eos" for row in rows) / len(rows),
        "repetition": sum(map(repetition, tokens)) / len(rows),
        "distinct_2": distinct(tokens, 2),
        "refusals": sum(harmless) / len(harmless) if harmless else None,  # of harmless requests
    }


def against(rows: Sequence[Row], earlier: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """A version against an earlier one on the same prompts, by gold, by the judge models and by the
    reward models (those that there are)."""
    found: dict[str, Any] = {}
    for measure, order in ORDERS.items():
        if rows[0].get(measure) is None or earlier[0].get(measure) is None:
            continue
        sides = [[row[measure] for row in side] for side in (rows, earlier)]
        wins = win_rate([order(row) for row in rows], [order(row) for row in earlier], resamples=resamples, seed=seed)
        found[measure] = {
            "difference": asdict(paired(*sides, resamples=resamples, seed=seed)),
            "wins": wins.wins,
            "ties": wins.ties,
            "losses": wins.losses,
            "win_rate": asdict(wins.rate),
            "decided": None if math.isnan(wins.decided) else wins.decided,
        }
    return found
