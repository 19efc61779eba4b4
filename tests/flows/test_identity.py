"""What names a stage: every recipe field does, no runtime field does, and nothing upstream is forgotten."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import Campaign, Runtime
from configs.check import check
from configs.load import FOLDER, resolve
from flows.rounds import align
from storage import open_store
from tasks import Run


def _names(tmp_path: Path, raw: dict[str, Any]) -> dict[str, str]:
    campaign: Campaign = resolve(check(raw, "test"))
    run = Run(campaign, open_store(tmp_path / "store"), campaign.runtime, mode="plan")
    align(run)
    return {label: artifact.ref.key for label, artifact in run.artifacts.items()}


@pytest.fixture
def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    return loaded


def test_plan_lays_out_the_whole_campaign_before_anything_exists(tmp_path: Path, raw: dict[str, Any]) -> None:
    labels = list(_names(tmp_path, raw))
    assert labels[:5] == ["documents", "prompts", "demonstrations", "leakage", "base"]
    for label in ("v0", "r1-annotate", "r1-helpfulness", "r1-safety", "r1-sample", "r1-score", "r1-select", "v1", "v2"):
        assert label in labels
    assert labels[-1] == "compare"


@pytest.mark.parametrize("field", sorted(Runtime.model_fields))
def test_runtime_never_names_a_result(tmp_path: Path, raw: dict[str, Any], field: str) -> None:
    other = {
        "store": "file:///elsewhere", "device": "cuda", "launcher": "deepspeed", "zero": 2, "offload": True,
        "attention": "flex",
        "sampler": "vllm", "require_cas": True, "trackers": ["mlflow"],
        "vllm": "/usr/bin/python3", "vllm_options": ["--enforce-eager"],
    }.get(field, 7)  # fmt: skip
    before = _names(tmp_path, raw)
    raw["runtime"] = {**raw["runtime"], field: other}
    assert _names(tmp_path, raw) == before


@pytest.mark.parametrize(
    ("section", "field", "value", "first", "untouched"),
    [
        ("sft", "epochs", 2, "v0", "base"),
        ("sample", "k", 5, "r1-sample", "r1-safety"),
        ("select", "rounds", "previous", "r1-select", "r1-score"),
        ("train", "replay", 0.5, "v1", "r1-select"),
        ("online", "iterations", 4, "v2", "v1"),
        ("probe", "k", 3, "r1-probe", "r1-safety"),
        ("evaluate", "temperature", 0.5, "base-evaluate", "v0"),
        ("compare", "bootstrap", 300, "compare", "v2-evaluate"),
    ],
)
def test_a_recipe_names_its_stage_and_all_after_it_only(
    tmp_path: Path, raw: dict[str, Any], section: str, field: str, value: object, first: str, untouched: str
) -> None:
    before = _names(tmp_path, raw)
    raw[section] = {**raw[section], field: value}
    after = _names(tmp_path, raw)
    assert after[first] != before[first]
    assert after["compare"] != before["compare"]
    assert after[untouched] == before[untouched]


def test_seed_names_everything_that_draws(tmp_path: Path, raw: dict[str, Any]) -> None:
    before = _names(tmp_path, raw)
    after = _names(tmp_path, {**raw, "seed": raw["seed"] + 1})
    assert not set(before.values()) & set(after.values())


def test_code_drift_accept_leaves_the_code_out_of_the_names(
    tmp_path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["code_drift"] = "accept"
    before = _names(tmp_path, raw)
    monkeypatch.setattr("tasks.stage.stage_code", lambda stage, methods: "other")
    assert _names(tmp_path, raw) == before
    raw["code_drift"] = "recompute"
    assert not set(_names(tmp_path, raw).values()) & set(before.values())


def test_flow_room_never_imports_torch() -> None:
    import subprocess
    import sys

    code = "import flows.iterative, flows.rounds, tasks, cli.main, cli.plan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent).returncode == 0
