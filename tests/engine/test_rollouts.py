"""engine.rollouts: which prompts are asked, who answers, what is read of it (T40, T57, T61, T74)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from online_runs import LIMITS, finish, recipe

from configs.runtime import Runtime
from engine import rollouts
from engine.batches import collate
from engine.drawing import fit
from engine.errors import StageError
from engine.forwards import logps, values
from engine.forwards import rewards as rewards_of
from engine.models import critic_from_reward, load_policy
from engine.scoring import combine, load_scorers
from storage.rows import read_rows


def planted(change: Callable[[Any], None]) -> Callable[..., Any]:
    """The sampler, with a defect: it samples from what `change` makes of its settings."""
    real = rollouts.generate

    def wrong(model: Any, *args: Any, **settings: Any) -> Any:
        call = {"model": model, **settings}
        change(call)
        return real(call.pop("model"), *args, **call)

    return wrong


def stale(call: dict[str, Any]) -> None:
    call["model"] = copy.deepcopy(call["model"])
    with torch.no_grad():
        next(iter(call["model"].parameters())).add_(0.05)


@pytest.mark.parametrize("change", [lambda call: call.update(temperature=0.7), stale], ids=["temperature", "weights"])
def test_a_sampler_that_is_not_the_policy_is_named(
    start: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> None:
    """T40, T61."""
    monkeypatch.setattr(rollouts, "generate", planted(change))
    with pytest.raises(StageError, match=r"sampler and trainer differ by .* at the temperature that are trained"):
        finish(start(recipe()))


def test_prompts_come_in_fresh_permutations_without_a_gap() -> None:
    """T57, T58: a place in the endless row depends on its number only; every epoch holds each prompt once."""
    row = rollouts.take(7, 0, 21, seed=4, stream="prompts")
    assert [sorted(row[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert row[:7] != row[7:14] != row[14:]
    assert rollouts.take(7, 5, 9, seed=4, stream="prompts") == row[5:14]
    assert rollouts.take(7, 0, 21, seed=5, stream="prompts") != row


def test_every_iteration_asks_the_next_prompts() -> None:
    asked = rollouts.Prompts([{"id": str(i)} for i in range(12)], [[1]] * 12)
    batches = [asked.batch(number, 4, seed=1) for number in (1, 2, 3, 4)]
    assert sorted(i for batch in batches[:3] for i in batch) == list(range(12))
    assert batches[3] != batches[0]


@pytest.fixture
def parties(policy: Any, rewards: Any, prompts: Any, chat: Any, tmp_path: Path) -> Any:
    """Models and prompts of a run, as the loop opens them."""
    runtime = Runtime(score_rows=5)
    judge = rollouts.judge_of(load_scorers(rewards, runtime, chat.fingerprint), chat, LIMITS, 5)
    model = load_policy(policy, runtime)
    found, _ = fit(chat, read_rows(prompts / "rows.parquet", "Prompt"), LIMITS.prompt_tokens, tmp_path)
    few = found[:6]  # fewer than a batch asks for: prompts come twice
    asked = rollouts.Prompts([row for row, _ in few], [ids for _, ids in few])
    return rollouts.Models(model, model, critic_from_reward(rewards[0], runtime), judge, chat), asked, runtime


def test_a_rollout_reads_what_each_model_says_of_each_row_alone(parties: Any, rewards: Any) -> None:
    """T15, T31: scores, log-probs and values do not depend on what else is in the batch."""
    models, asked, runtime = parties
    rolled = rollouts.roll(models, asked, recipe(k=2), runtime, 3, greedy=False)
    rollout = rolled.rollout
    scorers = load_scorers(rewards, runtime)
    for row in range(16):
        alone = collate([rolled.pairs[row]], pad_id=models.chat.pad_id)
        length = len(rolled.pairs[row][1])
        assert rollout.mask[row].tolist() == [True] * length + [False] * (rollout.mask.shape[1] - length)
        with torch.no_grad():
            logp, value = logps(models.policy, alone)[0], values(models.critic, alone)[0]
            torch.testing.assert_close(rollout.old_logp[row, :length], logp, rtol=0, atol=1e-5)
            torch.testing.assert_close(rollout.value[row, :length], value, rtol=0, atol=1e-5)
            assert float(rollout.value[row, length:].abs().sum() + rollout.old_logp[row, length:].abs().sum()) == 0
            for scorer in scorers:
                assert rolled.scores[scorer.kind][row] == pytest.approx(
                    float(rewards_of(scorer.model, alone)), abs=1e-5
                )
    wanted = combine(
        rolled.scores["helpfulness"], rolled.scores["safety"], [r["is_safety"] for r in rolled.rows], -1.7346
    )
    assert (rollout.branch.tolist(), rollout.score.tolist()) == (wanted[0], pytest.approx(wanted[1]))
    assert rollout.finished.tolist() == [r.token_ids[-1] == models.chat.eos_id for r in rolled.responses]


def test_a_prompt_that_comes_twice_is_answered_by_other_streams(parties: Any) -> None:
    """T89: 16 rollouts on 6 prompts, all of them different."""
    models, asked, runtime = parties
    rolled = rollouts.roll(models, asked, recipe(), runtime, 1, greedy=False)
    ids = [row["id"] for row in rolled.rows]
    assert len(set(ids)) == 6 and rolled.rollout.group.tolist() == list(range(16))
    assert len({(i, tuple(r.token_ids)) for i, r in zip(ids, rolled.responses)}) >= 15
    again = rollouts.roll(models, asked, recipe(), runtime, 1, greedy=False)
    assert [r.token_ids for r in again.responses] == [r.token_ids for r in rolled.responses]
    other = rollouts.roll(models, asked, recipe(), runtime, 2, greedy=False)
    first = [{row["id"]: r.token_ids for row, r in reversed(list(zip(b.rows, b.responses)))} for b in (rolled, other)]
    assert all(first[0][i] != first[1][i] for i in first[0])  # the same prompt in another iteration


def test_the_greedy_baseline_belongs_to_the_same_prompts_in_the_same_order(parties: Any) -> None:
    """T74: each rollout's baseline is the score of its own prompt's greedy response, for all K of them."""
    models, asked, runtime = parties
    rolled = rollouts.roll(models, asked, recipe(k=2), runtime, 2, greedy=True)
    baseline = rolled.rollout.baseline_score
    for row in range(0, 16, 2):
        ids = asked.ids[[r["id"] for r in asked.rows].index(rolled.rows[row]["id"])]
        greedy = rollouts.generate(models.policy, models.chat, [ids], [("x", 0)], seed=0, stream="s", temperature=0,
                                   max_new_tokens=10, rows=1)  # fmt: skip
        pairs = [(ids, greedy[0].token_ids)]
        with torch.no_grad():
            scores = models.judge(rolled.rows[row : row + 1], pairs, [([0], collate(pairs, pad_id=models.chat.pad_id))])
        wanted = rollouts.piecewise(rolled.rows[row : row + 1], scores, -1.7346)[1][0]
        assert baseline[row : row + 2].tolist() == pytest.approx([wanted] * 2, abs=1e-5)
        assert rolled.rollout.baseline_finished[row : row + 2].tolist() == [greedy[0].finish == "eos"] * 2


def test_parts_of_a_batch_are_put_together_in_its_order(parties: Any) -> None:
    """What several processes find out about their prompts is what one finds out about all of them."""
    models, asked, runtime = parties
    every = rollouts._keyed([asked.rows[i] for i in (0, 1, 0, 2, 3)], [asked.ids[i] for i in (0, 1, 0, 2, 3)])
    read = lambda places: rollouts._read_prompts(models, [every[i] for i in places], recipe(k=2), runtime, 1, True)
    whole = read(range(5))
    joined = rollouts._join([(places, read(places)) for places in ([0, 3], [1, 4], [2])], 2, "cpu")
    assert [r.token_ids for r in joined.responses] == [r.token_ids for r in whole.responses]
    assert whole.responses[0].token_ids != whole.responses[4].token_ids  # the same prompt, another stream
    assert [one[0] for one in joined.baseline] == pytest.approx([one[0] for one in whole.baseline], abs=1e-5)
    assert [one[1] for one in joined.baseline] == [one[1] for one in whole.baseline]
    for kind in whole.scores:
        assert joined.scores[kind] == pytest.approx(whole.scores[kind], abs=1e-5)
    for name, tensor in whole.read.items():
        torch.testing.assert_close(joined.read[name], tensor, rtol=0, atol=1e-5)
