"""`roundhouse plan` of every config that ships: the whole campaign by arithmetic, without data, hub or any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.load import FOLDER, load
from engine.formats import first_user_turn, is_held_out
from flows.rounds import align
from storage import open_store
from tasks import Run

ROOT = FOLDER.parent
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml") if "campaign" not in yaml.safe_load(path.read_text()))
VERSIONS = {
    "opt-350m-rm-static": ["base", "v0", "ppo"],
    "llama2-70b": ["base", "v0", "v1", "v2", "v3", "v4", "v5-rs", "v5"],
    "llama2-7b": ["base", "v0", "v1", "v2", "v3", "v4", "v5-rs", "v5"],
    "stories": ["base", "v0", "v1", "v2", "v3", "v4", "v5-rs", "v5"],
    "hh": ["base", "v0", "v1"],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_is_laid_out_without_its_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(tmp_path / "nothing"))
    campaign = load(name, require_data=False)
    run = Run(campaign, open_store(tmp_path / "store"), campaign.runtime, mode="plan")
    align(run)
    assert list(run.artifacts)[-1] == "compare" and len({a.ref.key for a in run.artifacts.values()}) == len(
        run.artifacts
    )
    if name in VERSIONS:
        assert list(run.versions) == VERSIONS[name]
        assert [label for label in run.artifacts if label.endswith("-evaluate")] == [
            f"{v}-evaluate" for v in VERSIONS[name]
        ]


SIZES = [("opt-350m-rm-static", "331.2M"), ("llama2-70b", "69.0G"), ("llama2-7b", "6.7G")]


@pytest.mark.parametrize(("name", "published"), SIZES)
def test_plan_needs_neither_hub_nor_data(name: str, published: str, tmp_path: Path) -> None:
    """The published sizes, from the architecture numbers in the YAML (with the proxy closed and the hub forbidden)."""
    environment = {
        **os.environ, "ROUNDHOUSE_STORE": (tmp_path / "store").as_uri(), "ROUNDHOUSE_DATA": str(tmp_path / "nothing"),
        "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"), "COLUMNS": "300",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "cli", "plan", name], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    base = next(line for line in done.stdout.splitlines() if line.startswith("base "))
    assert published in base.split(), base
    assert not (tmp_path / "hub").exists()


def test_hh_never_pretrains_on_what_it_is_judged_by() -> None:
    """Documents, pairs, demonstrations and prompts of one dialogue fall on one side: all are split by its first turn."""
    raw = yaml.safe_load((FOLDER / "hh.yaml").read_text())
    assert raw["data"]["held_out"] > 0 and {s["columns"]["text"] for s in raw["data"]["documents"]} == {"chosen"}
    for i in range(200):
        text = f"\n\nHuman: How do I fix {i}?\n\nAssistant: Try.\n\nHuman: No.\n\nAssistant: Sorry."
        pair = {"messages": [{"role": "user", "content": f"how do I  fix {i}?"}], "chosen": "a", "rejected": "b"}
        assert first_user_turn({"text": text}) == first_user_turn(pair)
        assert is_held_out({"text": text}, 0.2) == is_held_out(pair, 0.2)
