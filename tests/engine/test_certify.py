"""Sound reward models are certified, and every planted defect is rejected for what it is: real small trained models."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.world_pairs import longer_wins, preferences, reward_recipe, store, swapped, train_base, train_reward
from configs.certify import Certify, Leakage, Requirements
from configs.recipes import Template
from configs.runtime import Runtime
from engine import certify, invariance
from engine.formats import is_held_out
from engine.job import Job
from engine.models import load_policy, save_model
from engine.reward import STREAM
from engine.template import load_chat, make_chat
from storage.rows import write_rows

SAFETY = {"kind": "safety", "own_share": 0.9, "config": {"safety_weight": 1.0}, "epochs": 4}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A base and reward models on it. Never write into them."""
    root = tmp_path_factory.mktemp("certify")
    rows, base = preferences(1200), train_base(root)
    return SimpleNamespace(
        rows=rows,
        base=base,
        pairs=store(root / "pairs", rows),
        sound=train_reward(root / "sound", base, rows),
        safety=train_reward(root / "safety", base, rows, **SAFETY),
        longer=train_reward(root / "longer", base, rows, longer_wins),
        flipped=train_reward(root / "flipped", base, rows, swapped),
    )


def examine(models: Any, out: Path, reward: Path, recipe: Certify | None = None, **inputs: Any) -> dict[str, Any]:
    """The certificate of a model; `inputs` replace the usual ones."""
    out.mkdir(parents=True, exist_ok=True)
    given = {"reward": reward, "policy": models.base, "preferences": [models.pairs], **inputs}
    job = Job("certify", recipe or Certify(reward=reward_recipe()), given, out, Runtime())
    summary = certify.run(job)
    certificate: dict[str, Any] = json.loads((out / "certificate.json").read_text())
    assert summary["passed"] == certificate["passed"] == (not summary["failures"])
    return certificate


def failed(certificate: dict[str, Any]) -> set[str]:
    return {check["name"] for check in certificate["checks"] if not check["passed"]}


def test_a_sound_model_is_certified(models: Any, tmp_path: Path) -> None:
    found = examine(models, tmp_path, models.sound, other=models.safety)
    assert failed(found) == set() and found["passed"]
    assert found["own"]["accuracy"] > 0.6 and found["own"]["low"] < found["own"]["accuracy"] < found["own"]["high"]
    counts = [sum(group["count"] for group in found[by].values()) for by in ("by_grade", "by_source", "by_batch")]
    assert counts == [found["own"]["count"]] * 3
    assert found["own"]["count"] < found["pairs"] == sum(one["count"] for one in found["by_kind"].values())
    assert {"fact", "pair", "tell"} <= set(found["by_category"])
    assert set(found["agreement"]["other_by_kind"]) == {"helpfulness", "safety"}
    assert found["agreement"]["by_kind"]["helpfulness"] == found["own"]
    assert found["template"]["same"] and len(found["weights"]["reward"]) == 16
    assert found["weights"]["reward"] != found["weights"]["other"]  # whose weights were measured is told apart
    assert {check["name"] for check in found["checks"]} == (
        set(Requirements.model_fields) - {"unsafe_recall", "drift", "over_length"} | {"leakage"}
    )


def test_a_sound_safety_model_is_certified_and_its_recall_counts(models: Any, tmp_path: Path) -> None:
    recipe = Certify(reward=reward_recipe(**SAFETY))
    found = examine(models, tmp_path, models.safety, recipe)
    assert found["passed"], failed(found)
    assert "unsafe_recall" in {check["name"] for check in found["checks"]}
    assert found["unsafe"]["recall"] > found["unsafe"]["false_alarms"] + 0.3 and found["unsafe"]["unsafe"] > 20


def test_flipped_labels_are_rejected(models: Any, tmp_path: Path) -> None:
    found = examine(models, tmp_path, models.flipped)
    assert {"accuracy", "accuracy_low"} <= failed(found) and found["own"]["high"] < 0.5


def test_a_model_that_counts_tokens_is_rejected(models: Any, tmp_path: Path) -> None:
    found = examine(models, tmp_path, models.longer)
    assert {"longer_excess", "length_correlation"} & failed(found), found["length"]
    assert found["length"]["picks_longer"] > found["length"]["longer_is_better"] + 0.3


def test_and_also_where_the_annotators_count_tokens_too(models: Any, tmp_path: Path) -> None:
    pairs = store(tmp_path / "pairs", [longer_wins(row) for row in models.rows])
    found = examine(models, tmp_path / "out", models.longer, preferences=[pairs])
    assert found["own"]["accuracy"] > 0.9 and "length_correlation" in failed(found), found["length"]


@pytest.mark.slow
@pytest.mark.slow_short
def test_another_template_is_rejected(models: Any, tmp_path: Path) -> None:
    """The model is as good as any, but it reads other texts than the policy writes."""
    chat = make_chat(load_chat(models.base).tokenizer, Template(user="Q: {content}\n", assistant="A: {content}"))
    save_model(load_policy(models.base, Runtime()), chat, tmp_path / "base", "policy")
    wrong = train_reward(tmp_path / "wrong", tmp_path / "base", models.rows)
    found = examine(models, tmp_path / "out", wrong)
    assert failed(found) == {"template"} and found["own"]["accuracy"] > 0.55
    relaxed = Certify(reward=reward_recipe(), require=Requirements(template="any"))
    assert examine(models, tmp_path / "any", wrong, relaxed)["passed"]


@pytest.mark.parametrize("pad_id", [2, None])
def test_a_model_that_pads_wrongly_for_others_is_rejected(models: Any, tmp_path: Path, pad_id: int | None) -> None:
    """transformers finds the last token by the config's pad id: EOS there means that the EOS is not read."""
    shutil.copytree(models.sound, tmp_path / "padded")
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    (tmp_path / "padded" / "config.json").write_text(json.dumps({**config, "pad_token_id": pad_id}))
    found = examine(models, tmp_path / "out", tmp_path / "padded")
    assert failed(found) == {"invariance"} and found["invariance"]["batch"] < 1e-4
    assert found["invariance"]["plain"] is None if pad_id is None else found["invariance"]["plain"] > 0.1


def test_scoring_at_the_last_column_is_rejected(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic bug: the score is read at the end of the padded row, not at the end of the response."""
    right = invariance.collate

    def planted(*given: Any, **more: Any) -> Any:
        padded = right(*given, **more)
        rows, width = padded.ids.shape
        object.__setattr__(padded, "last", torch.arange(rows) * width + width - 1)
        return padded

    monkeypatch.setattr(invariance, "collate", planted)
    found = examine(models, tmp_path, models.sound)
    assert failed(found) == {"invariance"} and found["invariance"]["batch"] > 0.1


def test_training_on_evaluation_prompts_is_rejected(models: Any, tmp_path: Path) -> None:
    """A model as good as any, whose training rows hold a tenth of the evaluation prompts, one with other punctuation."""
    asked = [row["messages"] for row in models.rows if not is_held_out(row, 0.2, STREAM)][:30]
    asked[0] = [{**turn, "content": turn["content"].replace(".", " ...").replace("?", " ??")} for turn in asked[0]]
    held = [
        {"id": f"e{i}", "messages": messages, "category": "c", "is_safety": False, "source": "evaluation"}
        for i, messages in enumerate(asked)
    ]
    write_rows(tmp_path / "prompts" / "held_out.parquet", "Prompt", held)
    found = examine(models, tmp_path / "out", models.sound, prompts=tmp_path / "prompts")
    assert failed(found) == {"leakage"} and found["leakage"]["verbatim"] + found["leakage"]["respelled"] >= 25
    assert found["leakage"]["respelled"] >= 1
    assert (tmp_path / "out" / "leaks.jsonl").read_text().count("\n") >= 30
    recorded = Certify(reward=reward_recipe(), leakage=Leakage(on_leak="record"))
    assert examine(models, tmp_path / "rec", models.sound, recorded, prompts=tmp_path / "prompts")["passed"]


@pytest.mark.slow
@pytest.mark.slow_short
def test_learning_by_heart_is_rejected(models: Any, tmp_path: Path) -> None:
    rows = models.rows[:60] + [row for row in models.rows[60:] if row["kind"] == "helpfulness"][:40]
    parrot = train_reward(tmp_path / "parrot", models.base, rows, epochs=60, own_share=1.0)
    pairs = store(tmp_path / "pairs", rows)
    recipe = Certify(reward=reward_recipe(epochs=60, own_share=1.0), require=Requirements(accuracy=None))
    found = examine(models, tmp_path / "out", parrot, recipe, preferences=[pairs])
    assert found["overfit"]["train"]["accuracy"] > 0.95 and "overfit_gap" in failed(found), found["overfit"]


def test_drift_is_measured_on_the_same_rows_in_every_round(models: Any, tmp_path: Path) -> None:
    later = store(tmp_path / "later", preferences(300, seed=2, source="round-2"))
    once = examine(models, tmp_path / "a", models.sound)
    again = examine(models, tmp_path / "b", models.sound, preferences=[models.pairs, later], before=models.sound)
    assert (tmp_path / "a" / "probe.jsonl").read_bytes() == (tmp_path / "b" / "probe.jsonl").read_bytes()
    assert "drift" not in once and again["drift"]["rank_correlation"] == pytest.approx(1.0)
    assert again["drift"]["flipped"] == 0 and again["by_batch"]["2"]["count"] > 10
    turned = examine(models, tmp_path / "c", models.flipped, before=models.sound)
    assert turned["drift"]["rank_correlation"] < 0 and "drift" in failed(turned)


def test_two_runs_write_the_same_bytes(models: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        examine(models, tmp_path / name, models.sound, other=models.safety, before=models.flipped)
    for file in ("certificate.json", "probe.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_model_without_a_held_out_pair_is_not_certified(models: Any, tmp_path: Path) -> None:
    found = examine(models, tmp_path, models.sound, Certify(reward=reward_recipe(held_out=0.0)))
    assert [check["text"] for check in found["checks"] if not check["passed"]] == [
        "held-out helpfulness pairs 0, at least 30 wanted"
    ]
