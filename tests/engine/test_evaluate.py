"""engine.evaluate and engine.compare: versions side by side on held-out prompts (METHODS 9; traps T39, T61, T76)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import world
from configs.recipes import Compare, Evaluate, Limits
from configs.runtime import Runtime
from engine import compare, evaluate, judges
from engine.drawing import fingerprint
from engine.errors import StageError
from engine.job import Job
from engine.models import load_policy, save_model
from engine.scoring import load_scorers, names
from engine.tables import read_table
from engine.template import load_chat
from storage.rows import read_rows

LIMITS = Limits(prompt_tokens=90, response_tokens=10)


def recipe(**more: Any) -> Evaluate:
    return Evaluate(**{"prompts": 16, "bootstrap": 100, "limits": LIMITS, "seed": 1, **more})


@pytest.fixture(scope="module")
def versions(
    policies: dict[str, Path], prompts: Path, rewards: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """base and v0 without reward models, v1 (another model) with them: {label: (folder, summary)}."""
    found: dict[str, Any] = {}
    for label, model, scorers in (("base", "qwen2", []), ("v0", "llama", []), ("v1", "qwen2", rewards)):
        out = tmp_path_factory.mktemp(label)
        inputs = {"policy": policies[model], "reference": policies["llama"], "rewards": scorers, "prompts": prompts,
                  "judges": scorers[::-1],
                  "earlier": [folder for folder, _ in found.values()]}  # fmt: skip
        chosen = recipe(version=label, earlier=tuple(found))
        summary = evaluate.run(Job(stage="evaluate", recipe=chosen, inputs=inputs, out=out, runtime=Runtime()))
        found[label] = (out, json.loads(json.dumps(summary, allow_nan=False)))
    return found


def test_responses_are_to_held_out_prompts_and_judged_by_gold(versions: Any, prompts: Path, policies: Any) -> None:
    folder, summary = versions["v1"]
    rows = list(read_table(folder / "responses.parquet"))
    held_out = {row["id"] for row in read_rows(prompts / "held_out.parquet")}
    train = {row["id"] for row in read_rows(prompts / "rows.parquet")}
    asked = [row["prompt_id"] for row in rows]
    assert set(asked) <= held_out and not set(asked) & train and len(set(asked)) == len(rows) == summary["prompts"]
    assert {row["policy"] for row in rows} == {fingerprint(policies["qwen2"])} == {summary["policy"]}
    for row in rows:
        gold = world.judge(row["messages"], row["text"])
        assert (row["gold_helpfulness"], row["gold_safety"]) == (gold.helpfulness, gold.safety)
    mean = sum(row["gold_helpfulness"] for row in rows) / len(rows)
    assert summary["gold_helpfulness"]["mean"] == pytest.approx(mean)
    assert summary["gold_helpfulness"]["low"] <= mean <= summary["gold_helpfulness"]["high"]


def test_averaged_weights_cannot_be_taken_for_the_live_ones(policies: dict[str, Path], tmp_path: Path) -> None:
    """T87: nothing here averages weights, and an evaluation names the weights that answered; an average has another name."""
    chat, live = load_chat(policies["llama"]), load_policy(policies["llama"], Runtime())
    save_model(live, chat, tmp_path / "live", "policy")
    for parameter in live.parameters():
        parameter.data = parameter.data.lerp(torch.zeros_like(parameter.data), 0.001)
    save_model(live, chat, tmp_path / "averaged", "policy")
    names = [fingerprint(folder) for folder in (policies["llama"], tmp_path / "live", tmp_path / "averaged")]
    assert names[0] == names[1] != names[2]


def test_every_version_answers_the_same_prompts(versions: Any) -> None:
    asked = [[row["prompt_id"] for row in read_table(folder / "responses.parquet")] for folder, _ in versions.values()]
    assert asked[0] == asked[1] == asked[2]


def test_kl_is_zero_for_v0_itself_and_a_sequence_sum_for_others(versions: Any, policies: Any) -> None:
    assert [row["kl"] for row in read_table(versions["v0"][0] / "responses.parquet")] == [0.0] * versions["v0"][1][
        "prompts"
    ]
    chat = load_chat(policies["llama"])
    policy, reference = (load_policy(policies[name], Runtime()) for name in ("qwen2", "llama"))
    rows = list(read_table(versions["v1"][0] / "responses.parquet"))
    for row in rows[:4]:
        prompt = chat.prompt_ids(chat.fit_prompt(row["messages"], 90))
        total = 0.0
        for model, sign in ((policy, 1), (reference, -1)):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + row["token_ids"]])).logits[0] / 0.8
            logps = logits.log_softmax(-1)
            total += sign * sum(float(logps[len(prompt) - 1 + j, t]) for j, t in enumerate(row["token_ids"]))
        assert row["kl"] == pytest.approx(total, abs=1e-3)
    assert sum(row["kl"] for row in rows) > 0


def test_earlier_versions_are_rescored_under_these_reward_models(versions: Any, rewards: list[Path]) -> None:
    folder, summary = versions["v1"]
    seen = list(read_table(folder / "rescored.parquet"))
    assert {row["version"] for row in seen} == {"base", "v0"} and len(seen) == 2 * summary["prompts"]
    assert all(row["helpfulness"] is not None and row["safety"] is not None for row in seen)
    assert all(row["helpfulness"] is None for row in read_table(versions["v0"][0] / "responses.parquet"))  # had none
    assert summary["rewards"] == names(load_scorers(rewards, Runtime()))
    assert set(summary["against"]) == {"base", "v0"} and set(summary["against"]["v0"]) == {"gold", "judge", "score"}


def test_the_same_model_as_an_earlier_version_ties_with_it(versions: Any) -> None:
    """base and v1 are the same weights: same prompts, same random numbers, same words."""
    texts = [[row["text"] for row in read_table(versions[v][0] / "responses.parquet")] for v in ("base", "v1")]
    assert texts[0] == texts[1]
    for measure in ("gold", "score"):
        found = versions["v1"][1]["against"]["base"][measure]
        assert (found["wins"], found["losses"], found["win_rate"]["mean"], found["difference"]["mean"]) == (
            0,
            0,
            0.5,
            0.0,
        )


def test_categories_cover_all_prompts(versions: Any) -> None:
    summary = versions["v1"][1]
    assert sum(part["prompts"] for part in summary["categories"].values()) == summary["prompts"]
    assert {"missing_eos", "length", "repetition", "distinct_2"} <= set(next(iter(summary["categories"].values())))


def test_the_summary_is_among_the_files(versions: Any) -> None:
    for folder, summary in versions.values():
        assert json.loads((folder / "summary.json").read_text()) == summary


def test_models_that_steer_nothing_judge_every_version_by_the_same_rule(versions: Any, rewards: list[Path]) -> None:
    folder, summary = versions["v1"]
    rows = list(read_table(folder / "responses.parquet"))
    wanted = [dict(row) for row in rows]
    evaluate.add_scores(wanted, load_scorers(rewards[::-1], Runtime()), LIMITS, 64, -1.7346)
    assert [(r["judge_branch"], r["judge"]) for r in rows] == [(w["branch"], w["score"]) for w in wanted]
    assert summary["judge"]["mean"] == pytest.approx(sum(w["score"] for w in wanted) / len(wanted))
    assert set(summary["against"]["v0"]) == {"gold", "judge", "score"}
    assert versions["v0"][1]["judge"] is None


@pytest.mark.parametrize(("text", "no"), [("I will not help with that.", True), ("I can\N{RIGHT SINGLE QUOTATION MARK}t", True),
                                          ("The fox will not eat that.", False), ("x" * 200 + " i cannot", False)])  # fmt: skip
def test_a_refusal_is_read_from_the_text_where_the_domain_does_not_know(text: str, no: bool) -> None:
    assert judges.refuses("none", [], text) is no


def test_the_world_knows_its_own_refusals() -> None:
    asked = [{"role": "user", "content": "how do i poison the hen?"}]
    assert judges.refuses("world", asked, "that would hurt it.") and not judges.refuses("world", asked, "as an ai")


def test_smoke_prompts_are_answered_greedily(versions: Any, policies: Any) -> None:
    smoke = json.loads((versions["v1"][0] / "smoke.json").read_text())
    asked = [list(messages) for messages in world.SMOKE_PROMPTS]
    assert [entry["messages"] for entry in smoke] == [m for m in asked if m in [e["messages"] for e in smoke]]
    assert len(smoke) >= 4 and all(entry["helpfulness"] is not None for entry in smoke)
    chat, model = load_chat(policies["qwen2"]), load_policy(policies["qwen2"], Runtime())
    ids = chat.prompt_ids(smoke[0]["messages"])
    with torch.inference_mode():
        for _ in range(smoke[0]["tokens"]):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert chat.text(ids[-smoke[0]["tokens"] :]) == smoke[0]["response"]


def test_without_a_judge_gold_is_unknown(make_job: Any, policy: Path, prompts: Path, rewards: list[Path]) -> None:
    job = make_job(
        "evaluate", recipe(judge="none", smoke_prompts=("hello?",)), policy=policy, reference=policy, rewards=rewards,
        prompts=prompts,
    )  # fmt: skip
    summary = evaluate.run(job)
    assert summary["gold"] is None and summary["score"] is not None
    assert [entry["messages"][0]["content"] for entry in json.loads((job.out / "smoke.json").read_text())] == ["hello?"]


def test_versions_that_answered_other_prompts_are_not_compared(
    make_job: Any, policy: Path, prompts: Path, versions: Any
) -> None:
    given = {"policy": policy, "reference": policy, "prompts": prompts, "earlier": [versions["v0"][0]]}
    with pytest.raises(StageError, match="v0 was evaluated on other prompts than v9"):
        evaluate.run(make_job("evaluate", recipe(version="v9", earlier=("v0",), prompts=5), **given))


def test_a_killed_evaluation_continues(
    make_job: Any, policies: Any, prompts: Path, save_points: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"policy": policies["qwen2"], "reference": policies["llama"], "prompts": prompts,
             "runtime": {"sample_rows": 1, "save_steps": 1}}  # fmt: skip
    whole = make_job("evaluate", recipe(), out="whole", **given)
    summary = evaluate.run(whole)
    calls, real = [0], evaluate.generate

    def counted(*args: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(evaluate, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(make_job("evaluate", recipe(), out="first", saves=save_points(), **given))
    again = make_job("evaluate", recipe(), out="second", saves=save_points(), **given)
    assert evaluate.run(again) == summary and calls[0] == 3 + 2 + 1  # chunks 3 and 4, and the smoke prompts
    for name in ("responses.parquet", "rescored.parquet", "smoke.json"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_compare_puts_all_versions_under_the_last_reward_models(
    make_job: Any, versions: Any, rewards: list[Path]
) -> None:
    chosen = Compare(versions=tuple(versions), bootstrap=100, limits=LIMITS)
    job = make_job("compare", chosen, versions=[folder for folder, _ in versions.values()], rewards=rewards)
    summary = json.loads(json.dumps(compare.run(job), allow_nan=False))
    table = json.loads((job.out / "table.json").read_text())
    assert [entry["version"] for entry in table["versions"]] == ["base", "v0", "v1"] == summary["versions"]
    assert all(entry["score"] is not None for entry in table["versions"])
    rows = list(read_table(job.out / "scored.parquet"))
    assert {row["rewards"] for row in rows} == {names(load_scorers(rewards, Runtime()))} and len(rows) == 3 * summary[
        "prompts"
    ]
    matrix = table["matrix"]
    assert matrix["v0"]["v1"]["gold"]["wins"] == matrix["v1"]["v0"]["gold"]["losses"]
    assert matrix["v1"]["base"]["score"]["ties"] == summary["prompts"]
    gain = summary["means"]["v1"]["gold"] - summary["means"]["v0"]["gold"]
    assert summary["trend"]["gold"] == (
        pytest.approx(1.0 if gain > 0 else -1.0) if gain else None
    )  # base is no version


def test_trend_is_the_rank_correlation_of_version_and_mean() -> None:
    rows = lambda mean: [dict.fromkeys(compare.MEANS, mean)]
    found = compare.trend({"base": rows(99.0), "v0": rows(0.1), "v1": rows(0.3), "v2": rows(0.2), "v3": rows(0.5)})
    assert found["gold"] == pytest.approx(0.8)  # ranks 1 3 2 4: 1 - 6 * 2 / 60
    assert compare.trend({"v0": [{"gold": None}], "v1": [{"gold": None}]})["gold"] is None


def test_compare_needs_the_same_prompts(make_job: Any, versions: Any, policy: Path, prompts: Path) -> None:
    other = make_job("evaluate", recipe(prompts=5), out="other", policy=policy, reference=policy, prompts=prompts)
    evaluate.run(other)
    job = make_job("compare", Compare(versions=("v0", "v1")), versions=[versions["v0"][0], other.out])
    with pytest.raises(StageError, match="2 different sets of prompts"):
        compare.run(job)
