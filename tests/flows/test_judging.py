"""Judge models are trained on prompts that no round sees, and stand in every evaluation and in the matrix."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.check import check
from configs.load import FOLDER, resolve
from flows.rounds import align
from storage import open_store
from storage.rows import read_rows
from tasks import Run


def campaign(**more: Any) -> Any:
    raw: dict[str, Any] = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    return resolve(check({**raw, **more}, "test"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The micro campaign with judge models."""
    chosen = campaign(judge_model={"share": 0.3, "prompts": 20}, matrix={"bootstrap": 50, "prompts": 8})
    run = Run(chosen, open_store(tmp_path_factory.mktemp("judged") / "store"), chosen.runtime, mode="direct")
    align(run)
    return run


def prompts_of(run: Run, label: str, file: str = "rows.parquet", column: str = "prompt_id") -> set[str]:
    return {row[column] for row in read_rows(run.store.fetch(run.artifacts[label].ref) / file)}


def test_no_round_sees_a_prompt_of_the_judges(judged: Run) -> None:
    apart = prompts_of(judged, "judge-prompts", column="id")
    main = prompts_of(judged, "prompts", column="id")
    held_out = prompts_of(judged, "prompts", "held_out.parquet", "id")
    assert len(apart) > 5 and len(main) > 5 and len(apart | main | held_out) == len(apart) + len(main) + len(held_out)
    assert prompts_of(judged, "judge-annotate") <= apart
    assert prompts_of(judged, "r1-annotate") <= main
    assert prompts_of(judged, "v1-evaluate", "responses.parquet") <= held_out
    plain = campaign()
    other = Run(plain, judged.store, plain.runtime, mode="direct", until="v0")
    with pytest.raises(Exception, match="v0"):
        align(other)
    assert prompts_of(other, "prompts", column="id") == apart | main  # the split takes nothing from the held-out part
    assert prompts_of(other, "prompts", "held_out.parquet", "id") == held_out


def test_the_judges_steer_nothing(judged: Run) -> None:
    readers = {
        label for label, artifact in judged.artifacts.items()
        if any(up.label in ("judge-helpfulness", "judge-safety") for up in artifact.upstream)
    }  # fmt: skip
    assert readers == {"v1-evaluate", "v2-evaluate", "matrix", "compare"}


def test_every_evaluation_and_the_matrix_hold_their_word(judged: Run) -> None:
    for version in ("v1", "v2"):
        summary = judged.evaluations[version].summary()
        assert summary is not None and summary["judge"] is not None and "judge" in summary["against"]["v0"]
    table = json.loads((judged.store.fetch(judged.artifacts["matrix"].ref) / "matrix.json").read_text())
    assert [judge["name"] for judge in table["judges"]] == ["r1", "judge", "gold"]
    assert table["versions"] == ["base", "v0", "v1", "v2"] and set(table["cells"]["v2"]) == {"r1", "judge", "gold"}
    assert {gap["version"]: gap["proxy_of"] for gap in table["gaps"]} == {"v0": "", "v1": "r1", "v2": "r1"}
    (curve,) = table["best_of_n"]
    assert (curve["round"], curve["k"]) == ("round-1", 4) and len(curve["points"]) == 4
    sets = {judge["name"]: judge["rewards"] for judge in table["judges"]}
    assert sets["r1"] == curve["rewards"]  # the samples stand under the models that chose among them


def test_judges_by_the_steering_models_are_refused() -> None:
    annotate = {"annotator": "reward_model", "prompts": 32}
    with pytest.raises(
        ValueError, match="judge_model: preferences by annotator reward_model would make it no independent"
    ):
        campaign(judge_model={}, annotate=annotate)
    with pytest.raises(ValueError, match=r"judge_model: needs rewards .* and a share above 0"):
        campaign(judge_model={"share": 0.0})


def test_given_pairs_are_kept_apart_by_their_prompts(tmp_path: Path) -> None:
    raw = [{"prompt": f"question {i}?", "chosen": "yes.", "rejected": "no."} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    data = {**yaml.safe_load((FOLDER / "micro.yaml").read_text())["data"],
            "preferences": [{"path": str(tmp_path / "pairs.jsonl"), "format": "pair"}]}  # fmt: skip
    chosen = campaign(data=data, judge_model={"share": 0.5}, annotate={"annotator": "dataset", "batches": 2})
    run = Run(chosen, open_store(tmp_path / "store"), chosen.runtime, mode="plan")
    align(run)
    assert [up.label for up in run.artifacts["judge-annotate"].upstream] == ["prompts", "judge-preferences"]
    assert "judge-prompts" not in run.artifacts
    assert [up.label for up in run.artifacts["r1-annotate"].upstream] == ["prompts", "preferences"]
