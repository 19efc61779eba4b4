"""engine.online: what it learns and publishes, and that a killed run ends with the same bytes (T34, T36, T46, T56-T61)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from online_runs import FAST, finish, prefers, recipe, result
from safetensors.torch import load_file

from configs.recipes import Limits, Tripwires
from configs.runtime import Runtime
from engine import online, participants
from engine.batches import collate
from engine.errors import StageError
from engine.forwards import rewards as rewards_of
from engine.models import load_policy, reward_from_policy, save_model
from storage.rows import read_rows


class Killed(BaseException):
    """Stands for a process that ends here."""


class Dying:
    """Save points of a process that dies right after its n-th save."""

    def __init__(self, saves: Any, after: int) -> None:
        self.saves, self.left = saves, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.saves, name)

    def save(self, *args: Any) -> None:
        self.saves.save(*args)
        self.left -= 1
        if self.left == 0:
            raise Killed


def test_a_run_publishes_a_policy_that_moved_and_leaves_its_inputs(start: Any, policy: Path) -> None:
    before = result(policy)
    job = start(recipe())
    summary = finish(job)
    # 2 batches of warm-up with 3 value steps, then 4 iterations of 16 / 8 = 2 steps of both models
    assert (summary["warmup_batches"], summary["policy_steps"], summary["critic_steps"]) == (2, 8, 14)
    assert (summary["iterations"], summary["rollouts"]) == (4, 96)
    assert result(policy) == before
    weights, old = load_file(job.out / "model.safetensors"), load_file(policy / "model.safetensors")
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in old.items()}
    assert not all(torch.equal(weights[n], old[n]) for n in old)
    load_policy(job.out, job.runtime)
    rows = list(read_rows(job.out / "rollouts-last.parquet", "Scored"))
    assert len(rows) == 16 and all(row["source"] == "online-4" for row in rows)
    assert {"helpfulness", "safety"} <= {name for name, value in rows[0].items() if value is not None}


def test_the_curve_holds_what_a_collapse_shows_first(start: Any) -> None:
    job = start(recipe())
    finish(job)
    curve = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["warmup"] for row in curve] == [1, 1, 0, 0, 0, 0]
    assert [row["policy_steps"] for row in curve] == [0, 0, 0, 2, 4, 6]
    for row in curve[:3]:  # policy and reference are still one model (T34)
        assert row["kl"] == pytest.approx(0.0, abs=1e-5)
    assert curve[-1]["kl_k3"] > 1e-4
    wanted = {
        *("score", "score_std", "score_min", "score_max", "processed_score", "total_reward", "kl", "kl_k3", "kl_coef"),
        *("entropy", "ratio", "ratio_max", "clip_fraction", "approx_kl", "value_loss", "value_clip_fraction"),
        *("explained_variance", "advantage", "advantage_std", "return", "response_length", "length_p95", "missing_eos"),
        *("perplexity", "reference_perplexity", "policy_norm", "critic_norm", "policy_rate", "critic_rate"),
        *("first_drift", "sampler_drift", "sampler_drift_p99", "distinct_2", "loops", "mute", "helpfulness", "safety"),
    }
    assert wanted <= set(curve[-1])
    assert curve[3]["first_drift"] < 1e-3 < curve[3]["drift"]  # the first minibatch has not moved, the mean of all has
    coefs = [row["kl_coef"] for row in curve[2:]]
    # one iteration at KL 0 is the largest step down; warm-up batches (KL 0 as well) do not count
    assert coefs[:2] == pytest.approx([0.01, 0.01 * (1 - 0.2 * 16 / 100)])


@pytest.mark.parametrize(
    ("settings", "deaths"),
    [
        ({}, (1, 2, 2)),
        ({"method": "remax", "config": {}}, (2,)),
        ({"method": "rloo", "config": {}, "k": 4}, (2,)),
        ({"tripwires": Tripwires(on_alarm="stop", anchor=2), "epochs": 2, "critic_head": "zero"}, (3,)),
    ],
    ids=["ppo", "remax", "rloo", "anchor"],
)
def test_killed_after_any_save_the_result_has_the_same_bytes(
    start: Any, save_points: Any, settings: dict[str, Any], deaths: tuple[int, ...]
) -> None:
    """T56 to T60: weights, moments, schedules, prompts, samples, statistics and controller go on as if nothing was.

    deaths: how many saves each process lives through; the next one begins where it died. After each death the run is
    also finished.
    """
    chosen = recipe(**settings)
    whole = start(chosen, out="whole")
    summary = finish(whole)
    for n, after in enumerate(deaths):
        saves = Dying(save_points(), after)
        with pytest.raises(Killed):
            online.run(start(chosen, out=f"dead-{n}", saves=saves, runtime={"save_steps": 1}))
        job = start(chosen, out=f"finished-{n}", saves=save_points(), runtime={"save_steps": 1000})
        assert finish(job) == summary
        assert result(job.out) == result(whole.out)
        point = save_points().latest()
        assert point is not None and point.step == sum(deaths[: n + 1])


REWARDED = [
    ("ppo", {}),
    pytest.param("rloo", {"k": 4}, marks=pytest.mark.slow),
    pytest.param("grpo", {"k": 4}, marks=pytest.mark.slow),
    # greedy is no typical response of a nearly uniform policy: a noisy baseline, so more iterations
    pytest.param("remax", {"kl_coef": 0.01, "iterations": 30, "minibatch_size": 64}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "changes"), REWARDED)
def test_a_rewarded_kind_of_token_becomes_common(start: Any, method: str, changes: dict[str, Any]) -> None:
    """One of three tokens is marked at first and the reward is their share: chance would leave the score in place."""
    rate = FAST.model_copy(update={"learning_rate": 5e-3, "schedule": "constant"})
    settings = {"iterations": 12, "batch_size": 64, "minibatch_size": 32, "optimizer": rate, **changes}
    config = {"missing_eos": "none", **({"kl_coef": settings.pop("kl_coef")} if "kl_coef" in settings else {})}
    job = start(recipe(method=method, config=config, **settings))
    summary = finish(job, prefers(lambda token: token % 3 == 0))
    first = job.rows[0]
    error = first["score_std"] / 64**0.5  # of a batch's mean score
    assert summary["score"] > first["score"] + 6 * error
    assert job.rows[-1]["kl"] > 0.1


@pytest.fixture(scope="session")
def fond(policy: Path, chat: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained on random responses to like the marked tokens."""
    model, generator = reward_from_policy(policy, Runtime(), seed=0), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        drawn = torch.randint(3, len(chat.tokenizer), (48, 10), generator=generator)
        padded = collate([([1, 5, 9], row) for row in drawn.tolist()], pad_id=chat.pad_id)
        wanted = 5 * (drawn % 3 == 0).float().mean(-1)
        (rewards_of(model, padded) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("fond")
    save_model(model, chat, folder, "reward")
    return folder


def test_ppo_raises_what_its_reward_model_learned_to_like(start: Any, fond: Path) -> None:
    """The whole path: the trained reward model judges and is the critic's start, and the truth behind it rises, too."""
    rate = FAST.model_copy(update={"learning_rate": 5e-3, "schedule": "constant"})
    config = {"missing_eos": "none"}
    job = start(recipe(iterations=12, batch_size=64, minibatch_size=32, optimizer=rate, config=config), rewards=[fond])
    summary = finish(job)
    first = job.rows[0]
    assert summary["score"] > first["score"] + 6 * first["score_std"] / 64**0.5
    ids = [t for row in read_rows(job.out / "rollouts-last.parquet", "Scored") for t in row["token_ids"]]
    share = sum(t % 3 == 0 for t in ids) / len(ids)
    assert share > 1 / 3 + 6 * (2 / 9 / len(ids)) ** 0.5


def test_a_zero_head_makes_a_critic_that_says_nothing_at_first(start: Any) -> None:
    """T49: the first returns are then the discounted rewards themselves."""
    job = start(recipe(critic_head="zero", iterations=1))
    finish(job)
    assert job.rows[0]["value"] == 0.0 != job.rows[1]["value"]


def test_the_warm_up_ends_when_the_critic_is_good_enough(start: Any) -> None:
    job = start(recipe(warmup_target=-1e9, iterations=2))
    assert finish(job)["warmup_batches"] == 0
    assert [row["warmup"] for row in job.rows] == [0, 0]


def test_a_collapse_stops_the_run_at_weights_that_were_sound(start: Any, save_points: Any) -> None:
    """One token is worth everything and nothing holds the policy back: it repeats it to the limit."""
    rate = FAST.model_copy(update={"learning_rate": 3e-2, "schedule": "constant", "warmup": 0.0})
    rules = Tripwires(on_alarm="stop", anchor=1)
    chosen = recipe(iterations=40, batch_size=32, minibatch_size=16, epochs=2, optimizer=rate, tripwires=rules,
                    warmup_batches=0, config={"kl_coef": 0.0, "missing_eos": "none", "clip": 0.9})  # fmt: skip
    judge = prefers(lambda token: token % 64 == 7)
    job = start(chosen)
    summary = finish(job, judge)
    rings = {alarm["rule"] for alarm in summary["alarms"]}
    assert summary["stopped"] and rings & {"repetition", "loops", "perplexity", "entropy", "kl", "reward"}
    sound = summary["published_iteration"]
    assert 0 < sound < summary["iterations"] - 1 < 39
    # the published weights are those that a run of so many iterations would have made
    shorter = start(chosen.model_copy(update={"iterations": sound}), out="shorter")
    finish(shorter, judge)
    assert (shorter.out / "model.safetensors").read_bytes() == (job.out / "model.safetensors").read_bytes()
    # and they are in the save point: killed after the last sound iteration, the run stops at the same ones
    with pytest.raises(Killed):
        online.run(start(chosen, out="dead", saves=Dying(save_points(), sound + 1), runtime={"save_steps": 1}), judge)
    again = start(chosen, out="again", saves=save_points(), runtime={"save_steps": 1000})
    assert finish(again, judge) == summary
    assert result(again.out) == result(job.out)


def test_an_alarm_is_recorded_and_the_run_goes_on_where_the_config_says_so(start: Any) -> None:
    job = start(recipe(iterations=4, tripwires=Tripwires(on_alarm="record", kl_budget=1e-9, patience=1)))
    summary = finish(job)
    assert summary["iterations"] == 4 and not summary["stopped"]
    assert [a["rule"] for a in summary["alarms"]].count("kl") == 1


def test_numbers_that_are_not_finite_stop_the_run_with_the_batch_written_out(start: Any) -> None:
    def broken(rows: Sequence[Any], pairs: Sequence[Any], parts: Any) -> dict[str, list[float | None]]:
        return {"helpfulness": [float("nan")] * len(pairs), "safety": [None] * len(pairs)}

    with pytest.raises(StageError, match=r"the helpfulness reward model scored a response to prompt .* with nan"):
        finish(start(recipe()), broken)
    job = start(recipe(warmup_batches=0, config={"reward_scaling": "none"}), out="huge")

    def huge(rows: Sequence[Any], pairs: Sequence[Any], parts: Any) -> dict[str, list[float | None]]:
        return {"helpfulness": [1e30 * (i % 2) for i in range(len(pairs))], "safety": [None] * len(pairs)}

    with pytest.raises(StageError, match=r"not finite.*bad-rollouts.json"):
        finish(job, huge)
    assert (job.out / "_beside/bad-rollouts.json").exists()


def test_a_policy_that_did_not_move_is_a_fault(start: Any) -> None:
    still = FAST.model_copy(update={"learning_rate": 1e-30})
    with pytest.raises(StageError, match="did not move any weight of the policy"):
        finish(start(recipe(optimizer=still, iterations=1)))


@pytest.mark.parametrize(("chosen", "message"), [
    ({"method": "sft", "config": {}}, "method sft learns from rows: it belongs to the train stage"),
    ({"preset": "llama3"}, "method ppo has no preset llama3; it has llama2, ppo-max"),
    ({"limits": Limits(prompt_tokens=2, response_tokens=4)}, "no prompt fits limits.prompt_tokens 2"),
    ({"config": {"entropy_coef": 0.01, "entropy_clip": 35.0}}, "entropy_clip 35.0 never acts"),
])  # fmt: skip
def test_a_run_that_cannot_begin_says_why(start: Any, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finish(start(recipe(**chosen)))


def test_a_run_without_reward_model_or_critic_says_so(start: Any) -> None:
    with pytest.raises(StageError, match="online needs a reward model"):
        finish(start(recipe(), rewards=[]))
    with pytest.raises(StageError, match="method ppo needs a critic"):
        finish(start(recipe(), rewards=[]), prefers(bool))


def test_a_preset_gives_the_methods_settings_and_the_recipe_has_the_last_word() -> None:
    _, config = participants.settings(recipe(preset="ppo-max", config={"lam": 0.5}))
    assert (config.reward_scaling, config.reward_clip, config.kl_coef, config.lam) == ("normalise", 0.8, 0.05, 0.5)
