"""engine.updates: the optimizer steps of an iteration (T46, T50)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from online_runs import finish, recipe

from engine import online, updates
from engine.errors import StageError


def test_the_language_model_term_learns_the_examples(start: Any, examples: Path) -> None:
    last = {}
    for weight in (20.0, 1e-6):  # the same examples at the same steps
        job = start(recipe(ptx_weight=weight, ptx_batch_size=8, warmup_batches=0, iterations=6), examples=examples,
                    out=f"ptx{weight}")  # fmt: skip
        finish(job)
        last[weight] = job.rows[-1]["ptx_nll"]
    assert last[20.0] < last[1e-6] - 0.2
    with pytest.raises(StageError, match=r"ptx_weight 20.0 needs examples"):
        finish(start(recipe(ptx_weight=20.0), out="none"))


@pytest.mark.parametrize("changes", [{}, {"k": 4, "method": "grpo", "config": {}}], ids=["ppo", "grpo"])
def test_micro_batches_do_not_change_a_step(start: Any, changes: dict[str, Any]) -> None:
    """T50: gradients are sums over the whole minibatch, whatever the size of its parts."""
    found = []
    for rows in (0, 1, 5):
        job = start(recipe(iterations=1, warmup_batches=0, minibatch_size=16, **changes), out=f"m{rows}",
                    runtime={"train_rows": rows})  # fmt: skip
        finish(job)
        found.append(job.rows[0])
    for row in found[1:]:
        for name in ("policy_norm", "policy_loss", *(["critic_norm", "value_loss"] if not changes else [])):
            assert row[name] == pytest.approx(found[0][name], rel=1e-4, abs=1e-7), name


def test_an_update_of_another_policy_is_named(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """T46: the weights moved between the rollout and the first minibatch."""
    real = online.improve

    def late(learner: Any, *args: Any) -> Any:
        with torch.no_grad():
            next(iter(learner.policy.model.parameters())).add_(0.05)
        return real(learner, *args)

    monkeypatch.setattr(online, "improve", late)
    job = start(recipe())
    with pytest.raises(
        StageError, match=r"first minibatch: the policy is not the one that sampled: .* in /.*bad-rollouts.json"
    ):
        finish(job)
    assert len(json.loads((job.out / "_beside/bad-rollouts.json").read_text())["rows"]) == 16


def test_each_pass_sees_every_prompt_once_with_all_its_rollouts() -> None:
    chosen = recipe(batch_size=48, minibatch_size=12, k=4)
    passes = [updates.minibatches(chosen, number, epoch) for number, epoch in ((1, 0), (1, 1), (2, 0))]
    for groups in passes:
        assert [len(g) for g in groups] == [3, 3, 3, 3]  # 12 rollouts are 3 prompts with 4 each
        assert sorted(g for part in groups for g in part) == list(range(12))
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert updates.minibatches(chosen, 1, 0) == passes[0]


def test_drift_on_the_first_minibatch_is_judged_by_its_largest_token() -> None:
    """METHODS 6.1: 1e-3 in float32, 0.05 in bfloat16; one token of many is enough."""
    moved = torch.zeros(500)
    updates.check_first(moved, {}, "float32")
    moved[77] = 0.004
    with pytest.raises(StageError, match=r"moved by up to 4.00e-03 \(at most 0.001\)"):
        updates.check_first(moved, {}, "float32")
    updates.check_first(moved, {}, "bfloat16")
    clipped = {"clip_fraction": (torch.tensor(2.0), torch.tensor(500.0))}
    with pytest.raises(StageError, match="2 tokens clipped"):
        updates.check_first(torch.zeros(500), clipped, "float32")


def test_bfloat16_runs_within_its_own_bound(start: Any) -> None:
    job = start(recipe(dtype="bfloat16", iterations=1, warmup_batches=1))
    finish(job)
    assert 0 < job.rows[-1]["sampler_drift"] < 0.05


def test_the_value_clip_does_not_hold_the_critic_in_its_warm_up(start: Any) -> None:
    """With returns near 50 a clip of 0.2 would stop all but the first value steps on a batch."""
    found = {}
    for clip in (0.2, 0.0):
        config = {"value_clip": clip, "missing_eos": "none", "reward_scaling": "none"}
        job = start(recipe(config=config, iterations=1, warmup_batches=1, warmup_steps=12), out=f"clip{clip}")
        finish(job, lambda rows, pairs, parts: {"helpfulness": [50.0] * len(pairs), "safety": [None] * len(pairs)})
        found[clip] = job.rows[0]["value_loss"]
    assert found[0.2] == found[0.0]
