"""The bake-off of configs/bake-off-micro.yaml: shared stages once, every competitor from the same start, one ranking."""

import json
from pathlib import Path

import pytest

from configs import load
from flows.bakeoff import compete
from storage import open_store
from tasks import Run
from tasks.outcome import write_report


def _compete(store: Path, mode: str = "direct", **changes: object) -> Run:
    campaign = load("bake-off-micro")
    assert campaign.bake_off is not None
    campaign = campaign.model_copy(update={"bake_off": campaign.bake_off.model_copy(update=changes)})
    run = Run(campaign, open_store(store), campaign.runtime, mode=mode)  # type: ignore[arg-type]
    compete(run)
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _compete(tmp_path_factory.mktemp("bakeoff") / "store")


def test_shared_stages_are_laid_out_once_a_seed(tmp_path: Path) -> None:
    one = _compete(tmp_path / "store", "plan", seeds=(11,))
    two = _compete(tmp_path / "store", "plan", seeds=(11, 12))
    works = [artifact.stage.work for artifact in one.artifacts.values()]
    assert [works.count(work) for work in ("pretrain", "annotate", "reward", "sample", "score", "rank")] == [
        1,
        1,
        2,
        1,
        1,
        1,
    ]
    assert works.count("evaluate") == 6 and len(two.artifacts) == 2 * (len(works) - 1) + 1
    keys = {label: artifact.ref.key for label, artifact in two.artifacts.items()}
    assert all(keys[label] == a.ref.key for label, a in one.artifacts.items() if label != "ranking")
    assert keys["s12-dpo"] != keys["s11-dpo"]


def test_iterated_entrants_sample_from_their_own_policy(tmp_path: Path) -> None:
    run = _compete(tmp_path / "store", "plan", methods=("sft", "dpo-iterated", "rrhf-iterated"), planted=None)
    second = run.artifacts["s11-dpo-iterated-sample"]
    assert second.stage.recipe.round == 2 and second.stage.recipe.prompts == 8  # type: ignore[attr-defined]
    assert [up.label for up in second.upstream if up.stage.kind == "model"] == ["s11-dpo-iterated-turn-1"]
    assert [up.label for up in run.artifacts["s11-dpo-iterated"].upstream if up.stage.kind == "model"] == [
        "s11-dpo-iterated-turn-1", "s11-dpo-iterated-turn-1"
    ]  # fmt: skip
    firsts = [a for label, a in run.artifacts.items() if a.stage.work == "sample" and a.stage.recipe.round == 1]  # type: ignore[attr-defined]
    assert len(firsts) == 1, "both first turns answer the same prompts with the same policy"


def test_ranking_holds_every_competitor_and_the_page_shows_it(done: Run) -> None:
    folder = done.store.fetch(done.artifacts["ranking"].ref)
    ranking = json.loads((folder / "ranking.json").read_text())
    names = {"v0", "sft", "rejection", "rejection-worst", "dpo", "rloo"}
    assert {entry["name"] for entry in ranking["entries"]} == names and len(ranking["pairs"]["gold"]) == 15
    assert next(e for e in ranking["entries"] if e["name"] == "v0")["kl"]["mean"] == 0.0
    place = write_report(done).removeprefix("file://")
    page, table = Path(place).read_text(), Path(place).with_suffix(".md").read_text()
    assert all(f". {name}</th>" in page for name in names)
    rows = {
        line.split("|")[1].split(". ")[1].strip(): line
        for line in table.splitlines()
        if line.startswith("| ") and ". " in line.split("|")[1]
    }
    assert set(rows) == names
    responses = {name: rows[name].split("|")[11].strip() for name in names}
    assert responses["dpo"] == responses["rejection"] == responses["rloo"] == "64" and responses["sft"] == "0"


def test_again_nothing_is_computed(done: Run) -> None:
    again = _compete(Path(done.store.url.removeprefix("file://")), "plan")
    assert all(artifact.made() is not None for artifact in again.artifacts.values())
