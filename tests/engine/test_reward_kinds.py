"""Reward models of every kind: rankings, attributes, verdicts, a vocabulary logit, DPO's implicit one, another family."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, train_tokenizer

from configs import ConfigError, Runtime
from configs.certify import Certify, Leakage
from configs.check import check
from configs.load import FOLDER
from configs.parse import parse
from configs.recipes import Ingest, Limits, Online, Optimizer, Reward, Sample, Score, Select, Source, Template
from engine import certify, ingest, online, reward, sample, select
from engine import score as score_stage
from engine.batches import collate
from engine.errors import StageError
from engine.formats import is_held_out, typed
from engine.forwards import logps
from engine.forwards import rewards as score
from engine.job import Job
from engine.models import load_policy, load_reward, new_model, reward_from_policy, save_model
from engine.scoring import load_scorers, score_outputs, score_texts
from engine.sources import Refusal
from engine.template import load_chat, make_chat
from methods import steerlm
from storage.rows import read_rows, write_rows

LIMITS = Limits(prompt_tokens=60, response_tokens=16)
ASKED = [{"role": "user", "content": "a new question"}]
GOOD, BAD = "a red fox", "an old tree"


def recipe(**more: Any) -> Reward:
    given = {
        "optimizer": Optimizer(learning_rate=3e-3, min_warmup_steps=0),
        "epochs": 3,
        "batch_size": 8,
        "held_out": 0.3,
    }
    return Reward(**{**given, "limits": LIMITS, "own_share": 1.0, **more})


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt_id": str(i), "category": "c", "is_safety": False, "source": "s", "kind": "helpfulness", "annotator": "a",
         "messages": [{"role": "user", "content": f"question {i}"}], "chosen": f"{GOOD} {i}", "rejected": f"{BAD} {i}"}
        for i in range(count)
    ]  # fmt: skip


def rankings(count: int, attributes: bool = False) -> list[dict[str, Any]]:
    """Three responses each: the fox before the bird before the tree; or with two attributes that the words tell."""
    words = (GOOD, "a small bird", BAD)
    more = {"attributes": [[3.0, 0.0], [2.0, 1.0], [0.0, 2.0]]} if attributes else {"scores": [2.0, 1.0, 0.0]}
    return [
        {"prompt_id": str(i), "category": "c", "is_safety": False, "source": "s", **more,
         "messages": [{"role": "user", "content": f"question {i}"}], "responses": [f"{word} {i}" for word in words]}
        for i in range(count)
    ]  # fmt: skip


def trained(make_job: Callable[..., Any], tmp_path: Path, policy: Path, rows: list[dict[str, Any]], **more: Any) -> Any:
    schema = "Preference" if "chosen" in rows[0] else "Ranking"
    write_rows(tmp_path / "rows" / "rows.parquet", schema, rows)
    job = make_job("reward", recipe(**more), model=policy, preferences=[tmp_path / "rows"])
    return job, reward.run(job)


def gap(folder: Path) -> float:
    """How far the reward model prefers the good answer to a question it has not seen, through the pipeline's own reader."""
    (scorer,) = load_scorers([folder], Runtime())
    good, bad = score_texts(scorer.model, scorer.chat, [(ASKED, f"{GOOD} 7"), (ASKED, f"{BAD} 7")], LIMITS, 8)
    return good - bad


def test_rankings_train_a_reward_model(policy: Path, make_job: Any, tmp_path: Path) -> None:
    job, _ = trained(make_job, tmp_path, policy, rankings(50), method="reward-ranking")
    report = json.loads((job.out / "held_out.json").read_text())
    rows = sum(is_held_out(row, 0.3, reward.STREAM) for row in rankings(50))
    assert report["pairs"] == 3 * rows > 20, "all comparisons of every held-out ranking"
    assert report["accuracy"] > 0.9 and gap(job.out) > 0.5


@pytest.mark.parametrize(
    ("method", "attributes"), [("reward-ranking", False), ("reward-attributes", True)], ids=["rankings", "attributes"]
)
def test_a_model_of_rankings_is_certified_on_the_rankings(
    policy: Path, make_job: Any, tmp_path: Path, method: str, attributes: bool
) -> None:
    more = {"config": {"attributes": ("helpfulness", "verbosity")}, "epochs": 6} if attributes else {}
    job, _ = trained(make_job, tmp_path, policy, rankings(60, attributes=attributes), method=method, **more)
    asked = Certify(reward=job.recipe, leakage=Leakage(on_leak="record"))
    done = make_job("certify", asked, reward=job.out, policy=policy, preferences=[tmp_path / "rows"])
    summary = certify.run(done)
    assert summary["passed"], summary["failures"]
    found = json.loads((done.out / "certificate.json").read_text())
    assert found["own"]["count"] == found["pairs"] > 30 and found["own"]["accuracy"] > 0.9


def test_single_verdicts_train_a_reward_model(policy: Path, make_job: Any, tmp_path: Path) -> None:
    job, _ = trained(make_job, tmp_path, policy, pairs(50), method="reward-pointwise")
    assert gap(job.out) > 0.5
    (scorer,) = load_scorers([job.out], Runtime())
    good, bad = score_texts(scorer.model, scorer.chat, [(ASKED, GOOD), (ASKED, BAD)], LIMITS, 8)
    assert good > 0 > bad, "zero is undecided"


def test_attributes_are_predicted_better_than_by_their_mean(policy: Path, make_job: Any, tmp_path: Path) -> None:
    more = {"method": "reward-attributes", "config": {"attributes": ("helpfulness", "verbosity")}, "epochs": 6}
    job, summary = trained(make_job, tmp_path, policy, rankings(50, attributes=True), **more)
    for name in ("helpfulness", "verbosity"):
        found = summary["held_out"]["attributes"][name]
        assert found["count"] > 15 and found["error"] < 0.6 * found["error_of_mean"]
    (scorer,) = load_scorers([job.out], Runtime())
    assert scorer.attributes == ("helpfulness", "verbosity")
    good, bad = score_outputs(scorer.model, scorer.chat, [(ASKED, GOOD), (ASKED, BAD)], LIMITS, 8)
    assert good[0] > bad[0] and good[1] < bad[1], "words that were taught: 3 and 0 against 0 and 2"
    alone = score_texts(scorer.model, scorer.chat, [(ASKED, GOOD)], LIMITS, 8)
    assert alone == pytest.approx([good[0]], abs=1e-5), "its reward is the first"


def test_an_attribute_model_labels_samples_and_given_examples(
    policy: Path, prompts: Path, examples: Path, make_job: Any, tmp_path: Path
) -> None:
    """SteerLM, steps 1 to 3: the levels end the prompts that the policy learns from."""
    names = ("helpfulness", "verbosity")
    more = {"method": "reward-attributes", "config": {"attributes": names}, "epochs": 6}
    judge, _ = trained(make_job, tmp_path, policy, rankings(50, attributes=True), **more)
    limits = Limits(prompt_tokens=90, response_tokens=10)
    drawn = make_job("sample", Sample(prompts=6, k=2, temperature=1.0, shards=2, limits=limits), out="drawn",
                     policy=policy, prompts=prompts)  # fmt: skip
    sample.run(drawn)
    for name, samples in (("own", drawn.out), ("given", examples)):
        job = make_job("score", Score(limits=limits), out=f"{name}-score", rewards=[judge.out], samples=[samples])
        summary = score_stage.run(job)
        scored = [row for file in sorted(job.out.glob("*.parquet")) for row in read_rows(file, "Scored")]
        assert len(scored) == summary["responses"] and all(len(row["attributes"]) == 2 for row in scored)
        assert all(row["helpfulness"] == row["attributes"][0] and row["safety"] is None for row in scored)
        config = {"attributes": names, "truncated": "keep"}
        rows = make_job("select", Select(method="steerlm", config=config), out=f"{name}-rows", scored=[job.out])
        select.run(rows)
        labels = steerlm.Config(**config)
        conditions = {row["prompt_id"]: steerlm.condition(row, labels) for row in scored}
        taught = list(read_rows(rows.out / "rows.parquet", "Example"))
        assert taught and all(
            row["messages"][-2]["content"].endswith(conditions[row["id"].rpartition("/")[0]]) for row in taught
        ) == (name == "given")  # an own prompt has several responses, each with its own levels
        told = json.loads((rows.out / "condition.json").read_text())["text"]
        assert told == "\n<extra_id_2>helpfulness:4,verbosity:4"
    given = list(read_rows(examples / "rows.parquet", "Example"))
    assert summary["responses"] + summary.get("dropped", 0) == len(given)
    assert {row["policy"] for row in scored} == {"given"} and {row["source"] for row in scored} == {"round-0"}
    by_id = {row["id"]: row["messages"] for row in given}
    assert all(
        by_id[row["prompt_id"]] == [*row["messages"], {"role": "assistant", "content": row["text"]}] for row in scored
    )


def test_given_examples_that_do_not_fit_are_counted(
    examples: Path, chat: Any, rewards: list[Path], make_job: Any
) -> None:
    given = [row["messages"] for row in read_rows(examples / "rows.parquet", "Example")]
    asked = sorted(len(chat.prompt_ids(messages[-2:-1])) for messages in given)
    said = sorted(len(chat.response_ids(messages[-1]["content"])) for messages in given)
    limits = Limits(prompt_tokens=asked[30], response_tokens=said[20])
    job = make_job("score", Score(limits=limits), rewards=rewards, samples=[examples])
    summary = score_stage.run(job)
    rows = list(read_rows(job.out / "scored-00000.parquet", "Scored"))
    assert (
        0 < summary["dropped"] < 40
        and summary["responses"] + summary["dropped"] == 40
        and len(rows) == summary["responses"]
    )
    assert {row["finish"] for row in rows} == {"eos", "length"}
    assert all(len(row["token_ids"]) <= said[20] and row["attributes"] is None for row in rows)


def test_a_critic_does_not_begin_as_a_model_of_attributes(
    policy: Path, prompts: Path, make_job: Any, tmp_path: Path
) -> None:
    """PPO under an attribute model: scored by its first output, V = 0 at first."""
    more = {"method": "reward-attributes", "config": {"attributes": ("helpfulness", "verbosity")}, "epochs": 1}
    judge, _ = trained(make_job, tmp_path, policy, rankings(20, attributes=True), **more)
    loop = Online(method="ppo", iterations=1, batch_size=8, minibatch_size=4, limits=LIMITS, warmup_batches=0,
                  optimizer=Optimizer(learning_rate=1e-3, min_warmup_steps=0))  # fmt: skip
    run = make_job("online", loop, out="online", policy=policy, rewards=[judge.out], prompts=prompts)
    online.run(run)
    (scorer,) = load_scorers([judge.out], Runtime())
    for row in read_rows(run.out / "rollouts-last.parquet", "Scored"):
        (alone,) = score_texts(scorer.model, scorer.chat, [(row["messages"], row["token_ids"])], LIMITS, 1)
        assert row["helpfulness"] == pytest.approx(alone, abs=1e-4)


def test_a_reused_logit_is_that_tokens_logit_at_first(policy: Path, chat: Any, make_job: Any, tmp_path: Path) -> None:
    token = chat.tokenizer.convert_ids_to_tokens(20)
    model = reward_from_policy(policy, Runtime(), seed=0, token=token)
    pair = (chat.prompt_ids(ASKED), chat.response_ids(GOOD))
    padded = collate([pair], pad_id=chat.pad_id)
    logits = load_policy(policy, Runtime())(torch.tensor([pair[0] + pair[1]])).logits[0, -1, 20]
    with torch.no_grad():
        assert score(model, padded).item() == pytest.approx(logits.item(), abs=1e-5)
    job, _ = trained(make_job, tmp_path, policy, pairs(50), head="token", head_token=token)
    assert gap(job.out) > 0.5
    with pytest.raises(StageError, match="is not a token of the model's vocabulary"):
        trained(make_job, tmp_path, policy, pairs(10), head="token", head_token="<nope>")
    with pytest.raises(ValueError, match="a token is given for head token only"):
        recipe(head="token")


def test_the_implicit_reward_of_dpo(policy: Path, chat: Any, make_job: Any, tmp_path: Path) -> None:
    """Equation 5 of Rafailov et al.: at the start 0, after training beta times the log-ratio of the two models."""
    job, _ = trained(make_job, tmp_path, policy, pairs(50), method="dpo", config={"beta": 0.5})
    assert job.rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    report = json.loads((job.out / "held_out.json").read_text())
    assert report["accuracy"] > 0.9 and gap(job.out) > 0.5
    padded = collate([(chat.prompt_ids(ASKED), chat.response_ids(GOOD))], pad_id=chat.pad_id)
    with torch.no_grad():
        now, before = (logps(load_policy(f, Runtime()), padded).sum().item() for f in (job.out, policy))
        assert score(load_reward(job.out, Runtime()), padded).item() == pytest.approx(0.5 * (now - before), abs=1e-4)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger GPT-2 with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("another")
    chat = make_chat(train_tokenizer(300), Template(user="Human: {content}\n", assistant="Bot: {content}"))
    config = tiny_config("gpt2", len(chat.tokenizer))
    config.n_embd, config.n_layer = 48, 3
    save_model(new_model(config, seed=9), chat, folder, "policy")
    return folder


def test_another_family_judges_texts(
    another: Path, policy: Path, prompts: Path, chat: Any, make_job: Any, tmp_path: Path
) -> None:
    """Another size, architecture and tokenizer than the policy: scored by text, also online, with a critic of its own."""
    refused, _ = trained(make_job, tmp_path, another, pairs(20), epochs=1)
    with pytest.raises(StageError, match="or give it reward_bases"):
        load_scorers([refused.out], Runtime(), chat.fingerprint)
    job, _ = trained(make_job, tmp_path, another, pairs(50), reads="own", epochs=6)
    assert load_chat(job.out).fingerprint != chat.fingerprint
    (scorer,) = load_scorers([job.out], Runtime(), chat.fingerprint)
    assert scorer.own and gap(job.out) > 0.5
    loop = Online(method="ppo", iterations=2, batch_size=8, minibatch_size=4, limits=LIMITS, warmup_batches=0, seed=2,
                  optimizer=Optimizer(learning_rate=1e-3, min_warmup_steps=0))  # fmt: skip
    run = make_job("online", loop, out="online", policy=policy, rewards=[job.out], prompts=prompts)
    online.run(run)
    for row in list(read_rows(run.out / "rollouts-last.parquet", "Scored")):
        (alone,) = score_texts(scorer.model, scorer.chat, [(row["messages"], row["text"])], LIMITS, 1)
        assert row["helpfulness"] == pytest.approx(alone, abs=1e-4)


def test_an_implicit_reward_drives_an_online_run(policy: Path, prompts: Path, make_job: Any, tmp_path: Path) -> None:
    job, _ = trained(make_job, tmp_path, policy, pairs(20), method="dpo", epochs=1)
    loop = Online(method="ppo", iterations=1, batch_size=8, minibatch_size=4, limits=LIMITS, warmup_batches=0,
                  optimizer=Optimizer(learning_rate=1e-3, min_warmup_steps=0))  # fmt: skip
    run = make_job("online", loop, out="online", policy=policy, rewards=[job.out], prompts=prompts)
    assert online.run(run)["iterations"] == 1


FEEDBACK = {
    "question": "why?",
    **{f"prediction {i}": f"because {i}" for i in (1, 2, 3, 4)},
    "preference": [1, 1, 0, 2, 2, 2],
}
LABELLED = {"system": "be brief", "conversations": [{"from": "User", "value": "why?", "label": None},
            {"from": "Assistant", "value": "because", "label": "helpfulness:4,verbosity:1"}]}  # fmt: skip


def read(raw: dict[str, Any], form: str) -> dict[str, Any]:
    return typed(raw, Source(path="x.jsonl", format=form), "rankings", "x", 1000)  # type: ignore[arg-type]


def test_six_comparisons_become_scores() -> None:
    """1 beats 2 and 3 and ties with 4; 3 beats 2; 4 beats 2 and 3: wins 2.5, 0, 1, 2.5."""
    row = read(FEEDBACK, "qa-feedback")
    assert row["scores"] == [2.5, 0.0, 1.0, 2.5] and row["responses"][3] == "because 4"
    assert row["messages"] == [{"role": "user", "content": "why?"}]
    with pytest.raises(Refusal, match="six of 0, 1, 2"):
        read(FEEDBACK | {"preference": [1, 1]}, "qa-feedback")


def test_labels_become_levels() -> None:
    row = read(LABELLED, "steerlm")
    assert row["attributes"] == [[4.0, 1.0]] and row["responses"] == ["because"]
    assert [m["role"] for m in row["messages"]] == ["system", "user"]
    broken = json.loads(json.dumps(LABELLED))
    broken["conversations"][1]["label"] = "helpfulness:high"
    with pytest.raises(Refusal, match="want name:level"):
        read(broken, "steerlm")


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"prompt": "p", "responses": ["a", "b"]}, "needs scores or attributes"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0]}, "scores must be a list of 2"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, None]}, "scores must all be numbers"),
        ({"prompt": "p", "responses": [], "scores": []}, "a list of responses"),
        ({"prompt": "p", "responses": ["a", 3], "scores": [1, 2]}, "holds a int, want text"),
    ],
)
def test_bad_rankings_are_refused(row: dict[str, Any], wanted: str) -> None:
    with pytest.raises(Refusal, match=wanted):
        read(row, "ranking")


def test_rankings_travel_through_ingest(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(
        "".join(json.dumps({**FEEDBACK, "question": f"why {i}?"}) + "\n" for i in range(20))
    )
    (tmp_path / "out").mkdir()
    chosen = Ingest(
        rows="rankings", sources=(Source(path=str(tmp_path / "r.jsonl"), format="qa-feedback"),), held_out=0.3
    )
    summary = ingest.run(Job("ingest", chosen, {}, tmp_path / "out", Runtime()))
    rows = list(read_rows(tmp_path / "out" / "rows.parquet", "Ranking"))
    assert len(rows) == summary["rows"] and summary["rows"] + summary["held_out"] == 20
    assert len({row["prompt_id"] for row in rows}) == len(rows)


ATTRIBUTES = {
    "data": {"prompts": [{"world": "prompts", "count": 9}], "documents": [{"world": "documents", "count": 9}],
             "rankings": [{"path": "x.jsonl", "format": "steerlm"}], "held_out": 0.2},
    "rewards": {"helpfulness": {"kind": "helpfulness", "method": "reward-attributes", "config": {"attributes": ["a"]}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rewards": {"helpfulness": {"kind": "helpfulness", "method": "reward-ranking"}}}, "data.rankings: none given"),
        ({"reward_bases": {"safety": {"adopt": {"path": "x"}}}, "rewards": {"helpfulness": {"kind": "helpfulness"}}},
         "there is no rewards.safety"),
        ({"rewards": {"helpfulness": {"kind": "helpfulness", "reads": "own"}}}, "reads: not here"),
        ({"rewards": {"helpfulness": {"kind": "helpfulness", "head": "token"}}}, "a token is given for head token only"),
        ({"rounds": [{"method": "dpo", "rows": "demonstrations"}]}, "dpo compares the responses to one prompt"),
        (ATTRIBUTES | {"rounds": [{"method": "steerlm", "select": {"method": "steerlm", "config": {"attributes": ["b"]}}}]},
         "select.config.attributes: ('b',), rewards.helpfulness.config.attributes: ('a',); want the same"),
        (ATTRIBUTES | {"rounds": [{"method": "steerlm"}]}, "select.config.attributes: none given"),
    ],
)  # fmt: skip
def test_configs_that_lack_something_are_told(changes: dict[str, Any], wanted: str) -> None:
    raw = parse((FOLDER / "micro.yaml").read_bytes(), "micro") | changes
    with pytest.raises(ConfigError) as caught:
        check(raw, "x.yaml")
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
