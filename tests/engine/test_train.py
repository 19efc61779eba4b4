from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.recipes import Limits, Optimizer, Train
from configs.runtime import Runtime
from engine import train
from engine.batches import collate
from engine.errors import StageError
from engine.forwards import logps
from engine.models import load_policy
from engine.template import load_chat
from storage.rows import write_rows

ANSWERS = {"red": "a red fox", "old": "an old tree", "small": "a small bird", "green": "the green hill"}
OPTIMIZER = Optimizer(learning_rate=1e-2, min_warmup_steps=0)
LIMITS = Limits(prompt_tokens=60, response_tokens=16)


def recipe(**more: Any) -> Train:
    return Train(**{"optimizer": OPTIMIZER, "epochs": 12, "batch_size": 3, "limits": LIMITS, **more})


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return _examples(tmp_path / "examples", ANSWERS)


def _examples(folder: Path, answers: dict[str, str]) -> Path:
    rows = [
        {"id": word, "category": "c", "is_safety": False, "source": "s", "messages": [
            {"role": "user", "content": f"tell me {word}"}, {"role": "assistant", "content": text}]}
        for word, text in answers.items()
    ]  # fmt: skip
    write_rows(folder / "rows.parquet", "Example", rows)
    return folder


def _pairs(folder: Path) -> Path:
    rows = [
        {"prompt_id": word, "category": "c", "is_safety": False, "source": "s", "kind": "helpfulness", "annotator": "a",
         "messages": [{"role": "user", "content": f"tell me {word}"}], "chosen": text, "rejected": "nothing", "grade": 3}
        for word, text in ANSWERS.items()
    ]  # fmt: skip
    write_rows(folder / "rows.parquet", "Preference", rows)
    return folder


def test_overfitted_model_answers_and_stops(policy: Path, examples: Path, make_job: Callable[..., Any]) -> None:  # T07
    job = make_job("train", recipe(epochs=40), model=policy, rows=[examples])
    summary = train.run(job)
    assert summary["steps"] == 80 and summary["rows"] == 40 * 4 and summary["read"] == {"rows": 4}
    chat, model = load_chat(job.out), AutoModelForCausalLM.from_pretrained(job.out).eval()
    for word, text in ANSWERS.items():
        prompt = chat.prompt_ids([{"role": "user", "content": f"tell me {word}"}])
        found = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
        assert found == chat.response_ids(text)


def test_two_runs_write_the_same_files(policy: Path, examples: Path, make_job: Callable[..., Any]) -> None:
    jobs = [make_job("train", recipe(epochs=1), out=o, model=policy, rows=[examples]) for o in ("a", "b")]
    for job in jobs:
        train.run(job)
        job.finish()
    names = sorted(p.name for p in jobs[0].out.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "roundhouse.json", "metrics.jsonl"} <= set(names)
    for name in names:
        assert (jobs[0].out / name).read_bytes() == (jobs[1].out / name).read_bytes(), name


def test_dpo_prefers_the_chosen_responses(policy: Path, tmp_path: Path, make_job: Callable[..., Any]) -> None:  # T21
    job = make_job("train", recipe(method="dpo", optimizer=OPTIMIZER.model_copy(update={"learning_rate": 1e-3})),
                   model=policy, rows=[_pairs(tmp_path / "pairs")], reference=policy)  # fmt: skip
    train.run(job)
    assert abs(job.rows[0]["loss"] - 0.6931) < 1e-3 and job.rows[-1]["loss"] < 0.6
    chat, gaps = load_chat(policy), []
    for folder in (policy, job.out):
        model = load_policy(folder, Runtime())
        prompt = chat.prompt_ids([{"role": "user", "content": "tell me red"}])
        both = collate([(prompt, chat.response_ids(t)) for t in ("a red fox", "nothing")], pad_id=chat.pad_id)
        with torch.no_grad():
            chosen, rejected = logps(model, both).sum(-1).tolist()
        gaps.append(chosen - rejected)
    assert gaps[1] > gaps[0] + 1


def test_replay_is_the_stated_share(policy: Path, examples: Path, tmp_path: Path, make_job: Callable[..., Any]) -> None:
    old = _examples(tmp_path / "old", {f"w{i}": "old text" for i in range(5)})
    job = make_job("train", recipe(replay=0.5, epochs=3), model=policy, rows=[examples], replay=old)
    summary = train.run(job)
    assert summary["replayed"] == 4 and summary["rows"] == 3 * (4 + 4)  # 4 of 8 rows are half


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"method": "ppo"}, "does not train a policy on rows"),
        ({"method": "reward"}, "does not train a policy on rows"),
        ({"limits": Limits(prompt_tokens=2)}, "no row is left"),
        ({"replay": 1.0}, "want a share below 1"),
    ],
)
def test_impossible_recipes_are_refused(
    changes: dict[str, Any], said: str, policy: Path, examples: Path, make_job: Callable[..., Any]
) -> None:
    with pytest.raises(StageError, match=said):
        train.run(make_job("train", recipe(**changes), model=policy, rows=[examples], replay=examples))


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "qwen2"])
def test_other_architectures_train_and_load(
    architecture: str, policies: dict[str, Path], examples: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job("train", recipe(), model=policies[architecture], rows=[examples])
    train.run(job)
    assert job.rows[-1]["loss"] < job.rows[0]["loss"]
    assert AutoModelForCausalLM.from_pretrained(job.out).config.model_type == architecture
