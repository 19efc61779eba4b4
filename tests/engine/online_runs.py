"""Small online runs on random models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.recipes import Limits, Online, Optimizer, Tripwires
from engine import online, rollouts

FAST = Optimizer(
    learning_rate=2e-3, schedule="cosine", warmup=0.1, min_warmup_steps=0, weight_decay=0.01, betas=(0.9, 0.95)
)
LIMITS = Limits(prompt_tokens=64, response_tokens=10)


def recipe(**changes: Any) -> Online:
    """A small PPO run in which everything that is counted moves: running statistics, KL controller, schedules."""
    settings: dict[str, Any] = {
        "method": "ppo", "iterations": 4, "batch_size": 16, "minibatch_size": 8, "warmup_batches": 2, "warmup_steps": 3,
        "warmup_target": 1.0, "optimizer": FAST, "critic_optimizer": FAST, "limits": LIMITS, "seed": 3,
        "config": {"kl_control": "adaptive", "kl_horizon": 100.0, "reward_scaling": "normalise"},
        "tripwires": Tripwires(on_alarm="record"),
    }  # fmt: skip
    return Online(**{**settings, **changes})


def result(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def prefers(marked: Callable[[int], bool]) -> rollouts.Judge:
    """A judge by program: five times the share of marked tokens in a response."""

    def judge(rows: Sequence[Any], pairs: Sequence[Any], parts: Any) -> dict[str, list[float | None]]:
        shares: list[float | None] = [5 * sum(map(marked, response)) / len(response) for _, response in pairs]
        return {"helpfulness": shares, "safety": [None] * len(pairs)}

    return judge


def finish(job: Any, judge: Any = None) -> dict[str, Any]:
    """Run a job as engine.run does."""
    summary = online.run(job, judge)
    job.finish()
    return summary
