"""Planted collapses of real online runs are named within the stated number of iterations; healthy runs raise no alarm.

Stated delay: 20 iterations from the first update, at rates at which these runs collapse. 60 healthy runs without an alarm
bound the rate of false alarms by 4.9 % a run (95 %, rule of three: 1 - 0.05 ** (1 / 60)).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from online_runs import finish, recipe

from configs.recipes import Ingest, Limits, Optimizer, Source, Train
from configs.runtime import Runtime
from engine import ingest, train
from engine.job import Job

pytestmark = pytest.mark.slow

DELAY = 20
HEALTHY = 60
LIMITS = Limits(prompt_tokens=64, response_tokens=48)


@pytest.fixture(scope="module")
def talker(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned to answer and to end."""
    rows, folder = tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("talker")
    chosen = Ingest(rows="examples", sources=(Source(world="demonstrations", count=400),))
    ingest.run(Job(stage="ingest", recipe=chosen, inputs={}, out=rows, runtime=Runtime()))
    fast = Optimizer(learning_rate=1e-2)
    sft = Train(epochs=4, batch_size=16, optimizer=fast, limits=LIMITS)
    train.run(Job(stage="train", recipe=sft, inputs={"model": policy, "rows": [rows]}, out=folder, runtime=Runtime()))
    return folder


def by(score: Callable[[Sequence[int]], float]) -> Any:
    """A judge by program."""
    return lambda rows, pairs, parts: {
        "helpfulness": [score(response) for _, response in pairs],
        "safety": [None] * len(pairs),
    }


COLLAPSES: dict[str, tuple[Callable[[Sequence[int]], float], set[str]]] = {
    "repeater": (lambda ids: sum(a == b for a, b in pairwise(ids)), {"repetition", "loops"}),
    "mute": (lambda ids: -len(ids), {"mute", "short"}),
    "length exploit": (len, {"runaway", "long"}),
    "reward exploit": (lambda ids: sum(t == 77 for t in ids), {"reward"}),
}


def run(start: Any, talker: Path, judge: Any, **changes: Any) -> dict[str, Any]:
    rate = Optimizer(learning_rate=5e-3, schedule="constant", warmup=0.0, min_warmup_steps=0)
    settings = {"batch_size": 32, "minibatch_size": 16, "limits": LIMITS, "optimizer": rate, "critic_optimizer": rate}
    job = start(recipe(**{**settings, **changes}), policy=talker)
    summary = finish(job, judge)
    for name in (
        "response_length",
        "missing_eos",
        "distinct_2",
        "loops",
        "mute",
        "score",
        "kl",
        "perplexity",
        "entropy",
    ):
        print(name, [round(row[name], 2) for row in job.rows])
    return summary


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_planted_collapse_is_named_in_time(start: Any, talker: Path, name: str) -> None:
    score, rules = COLLAPSES[name]
    summary = run(
        start, talker, by(score), iterations=DELAY, warmup_batches=0,
        config={"kl_coef": 0.0, "missing_eos": "none", "reward_scaling": "normalise"},
    )  # fmt: skip
    print([(a["rule"], a["step"]) for a in summary["alarms"]])
    assert {alarm["rule"] for alarm in summary["alarms"]} & rules


def test_healthy_runs_raise_no_alarm(start: Any, talker: Path) -> None:
    """Runs that learn (a mild rate, the KL in the reward) in 10 iterations of 32 rollouts each."""
    rate, rose, alarms = 1e-3, 0, {}
    optimizer = Optimizer(learning_rate=rate, schedule="constant", warmup=0.0, min_warmup_steps=0)
    judge = by(lambda ids: 5 * sum(t % 3 == 0 for t in ids) / len(ids))
    for seed in range(HEALTHY):
        job = start(
            recipe(batch_size=32, minibatch_size=16, limits=LIMITS, iterations=10, warmup_batches=1, config={}, seed=seed,
                   optimizer=optimizer, critic_optimizer=optimizer),
            out=f"seed-{seed}", policy=talker,
        )  # fmt: skip
        summary = finish(job, judge)
        rose += summary["score"] > summary["score_first"]
        if summary["alarms"]:
            alarms[seed] = [(a["rule"], a["step"], a["text"]) for a in summary["alarms"]]
    assert alarms == {}
    assert rose > 0.75 * HEALTHY  # they are runs that learn, not runs that stand still
