import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import methods
from configs.recipes import Limits, Optimizer, Reward
from engine import reward
from engine.errors import StageError
from engine.examples import Reader
from engine.formats import is_held_out
from engine.reward import STREAM, mix, split
from engine.spool import Spool
from engine.template import Chat, load_chat
from storage.rows import write_rows

LIMITS = Limits(prompt_tokens=60, response_tokens=16)
OPTIMIZER = Optimizer(learning_rate=3e-3, min_warmup_steps=0)


def recipe(**more: Any) -> Reward:
    return Reward(**{"optimizer": OPTIMIZER, "epochs": 3, "batch_size": 8, "limits": LIMITS, "held_out": 0.3, **more})


def pairs(
    count: int, kind: str = "helpfulness", good: str = "a red fox", bad: str = "an old tree"
) -> list[dict[str, Any]]:
    safe = {"chosen_safe": True, "rejected_safe": False} if kind == "safety" else {}
    return [
        {"prompt_id": f"{kind}{i}", "category": "c", "is_safety": False, "source": f"round-{i % 2}", "kind": kind,
         "annotator": "a", "messages": [{"role": "user", "content": f"{kind} question {i}"}], "chosen": f"{good} {i}",
         "rejected": f"{bad} {i}", "grade": i % 4, **safe}
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def preferences(tmp_path: Path) -> list[Path]:
    for name, rows in (("one", pairs(40)), ("two", pairs(20) + pairs(30, "safety", "a small bird", "a green hill"))):
        write_rows(tmp_path / name / "rows.parquet", "Preference", rows)
    return [tmp_path / "one", tmp_path / "two"]


def _reader(chat: Chat) -> Reader:
    method = methods.load("reward")
    return Reader(chat, LIMITS, method, method.Config())


def test_separable_pairs_are_learned(
    policy: Path, preferences: list[Path], make_job: Callable[..., Any]
) -> None:  # T21
    job = make_job("reward", recipe(), model=policy, preferences=preferences)
    summary = reward.run(job)
    report = json.loads((job.out / "held_out.json").read_text())
    assert report["own"]["accuracy"] > 0.9 and summary["held_out"]["own"] == report["own"]
    assert report["own"]["low"] <= report["own"]["accuracy"] <= report["own"]["high"]
    assert set(report["by_grade"]) <= {"negligibly better", "slightly better", "better", "significantly better"}
    assert sum(v["count"] for v in report["by_source"].values()) == report["pairs"]
    assert sum(b["pairs"] for b in report["calibration"]) == report["pairs"]
    chat, plain = load_chat(job.out), AutoModelForSequenceClassification.from_pretrained(job.out).eval()
    prompt = chat.prompt_ids([{"role": "user", "content": "a new question"}])
    good, bad = (
        plain(torch.tensor([prompt + chat.response_ids(t)])).logits.item() for t in ("a red fox 7", "an old tree 7")
    )
    assert good > bad + 0.5


def test_interchanged_pairs_teach_the_opposite(
    policy: Path, tmp_path: Path, make_job: Callable[..., Any]
) -> None:  # T21
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs(60)]
    found = {}
    for name, rows in (("right", pairs(60)), ("turned", turned)):
        write_rows(tmp_path / name / "rows.parquet", "Preference", rows)
        job = make_job("reward", recipe(own_share=1.0), out=f"o-{name}", model=policy, preferences=[tmp_path / name])
        reward.run(job)
        chat, plain = load_chat(job.out), AutoModelForSequenceClassification.from_pretrained(job.out).eval()
        prompt = chat.prompt_ids([{"role": "user", "content": "a new question"}])
        ids = [torch.tensor([prompt + chat.response_ids(t)]) for t in ("a red fox 7", "an old tree 7")]
        found[name] = plain(ids[0]).logits.item() - plain(ids[1]).logits.item()
    assert found["right"] > 0.5 and found["turned"] < -0.5


def test_prompts_of_both_sides_never_meet(chat: Chat) -> None:
    rows = pairs(60) + pairs(60)
    train, held = split(_reader(chat), rows, 0.3)
    assert len(train) + len(held) == 120 and 10 < len(held) < 70
    assert not {i.key for i in train} & {i.key for i in held}
    assert len(held) == sum(is_held_out(row, 0.3, STREAM) for row in rows)


def test_what_ingest_left_is_split_again(chat: Chat) -> None:
    """Preferences on training prompts all lie above ingest's share: a split by the same hash would hold nothing out."""
    rows = [row for row in pairs(200) if not is_held_out(row, 0.3)]
    _, held = split(_reader(chat), rows, 0.2)
    assert 0.08 < len(held) / len(rows) < 0.35


def test_given_held_out_pairs_are_judged_and_never_trained_on(
    policy: Path, make_job: Callable[..., Any], tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    write_rows(given / "rows.parquet", "Preference", pairs(24))
    write_rows(given / "held_out.parquet", "Preference", pairs(40)[30:])
    job = make_job("reward", recipe(held_out=0.0, epochs=1, own_share=1.0), model=policy, preferences=[given])
    summary = reward.run(job)
    assert summary["held_out"]["pairs"] == 10 and summary["mix"]["own"] == summary["rows"] == 24


def test_mix_has_the_stated_shares(chat: Chat) -> None:
    items = Spool(_reader(chat).read(pairs(30) + pairs(90, "safety")))
    for share, other in ((0.5, 30), (0.9, 3), (1.0, 0), (0.3, 70)):
        taken, counts = mix(items, "helpfulness", share, seed=1)
        assert counts == {"own": 30, "other": other, "other_wanted": other, "other_there": 90}
        assert sum(i.tags["kind"] == "helpfulness" for i in taken) == 30 and len(taken) == 30 + other
    counts = mix(items, "safety", 0.5, seed=1)[1]
    assert counts["other"] == 30 and counts["other_wanted"] == 90  # fewer than wanted is recorded
    keys = lambda seed: [item.key for item in mix(items, "helpfulness", 0.5, seed)[0]]
    assert keys(1) == keys(1) != keys(2)
    with pytest.raises(StageError, match="no safety pair"):
        mix(Spool(_reader(chat).read(pairs(3))), "safety", 0.9, 1)


def test_safety_term_moves_scores_around_zero(
    policy: Path, preferences: list[Path], make_job: Callable[..., Any]
) -> None:
    changes = {"kind": "safety", "own_share": 0.9, "config": {"safety_weight": 1.0}, "epochs": 6}
    job = make_job("reward", recipe(**changes), model=policy, preferences=preferences)
    summary = reward.run(job)
    report = json.loads((job.out / "held_out.json").read_text())
    assert summary["mix"]["own"] > 9 * summary["mix"]["other"] - 9
    assert report["unsafe"] > 3 and report["unsafe_recall"] > 0.8
    assert job.rows[-1]["safety_loss"] < job.rows[0]["safety_loss"]


def test_two_runs_write_the_same_files(policy: Path, preferences: list[Path], make_job: Callable[..., Any]) -> None:
    jobs = [make_job("reward", recipe(epochs=1), out=o, model=policy, preferences=preferences) for o in ("a", "b")]
    summaries = [reward.run(job) for job in jobs]
    assert summaries[0] == summaries[1]
    for path in sorted(jobs[0].out.iterdir()):
        assert path.read_bytes() == (jobs[1].out / path.name).read_bytes(), path.name


def test_reward_model_can_be_refreshed_from_a_reward_model(
    policy: Path, preferences: list[Path], make_job: Callable[..., Any]
) -> None:
    first = make_job("reward", recipe(), out="a", model=policy, preferences=preferences)
    reward.run(first)
    second = make_job("reward", recipe(epochs=1), out="b", model=first.out, preferences=preferences)
    reward.run(second)
    assert second.rows[0]["loss"] < 0.5 * first.rows[0]["loss"]


def test_method_without_a_reward_is_refused(
    policy: Path, preferences: list[Path], make_job: Callable[..., Any]
) -> None:
    with pytest.raises(StageError, match="does not train a reward model"):
        reward.run(make_job("reward", recipe(method="sft"), model=policy, preferences=preferences))
