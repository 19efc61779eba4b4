"""engine.score: samples of all rounds under one round's reward models (traps T11, T75, T76)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.recipes import Limits, Sample, Score
from configs.runtime import Runtime
from engine import sample, score, scoring
from engine.errors import StageError
from engine.job import Job
from engine.scoring import load_scorers, names
from storage.rows import read_rows

LIMITS = Limits(prompt_tokens=90, response_tokens=10)


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.fixture(scope="module")
def samples(policy: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two rounds, two files each."""
    folders = []
    for turn in (1, 2):
        folders.append(tmp_path_factory.mktemp(f"round-{turn}"))
        recipe = Sample(prompts=6, k=2, temperature=1.0, shards=2, limits=LIMITS, round=turn)
        inputs = {"policy": policy, "prompts": prompts}
        sample.run(Job(stage="sample", recipe=recipe, inputs=inputs, out=folders[-1], runtime=Runtime()))
    return folders


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("scored-*.parquet")) for row in read_rows(file, "Scored")]


def result(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_every_response_of_every_round_is_scored_once(make_job: Any, samples: list[Path], rewards: list[Path]) -> None:
    job = make_job("score", Score(limits=LIMITS), rewards=rewards, samples=samples)
    summary = score.run(job)
    rows = rows_of(job.out)
    given = [row for folder in samples for file in score.responses(folder) for row in read_rows(file)]
    assert [(r["prompt_id"], r["k"], r["source"], r["text"]) for r in rows] == [
        (r["prompt_id"], r["k"], r["source"], r["text"]) for r in given
    ]
    scorers = load_scorers(rewards, Runtime())
    texts = [(row["messages"], row["text"]) for row in rows]
    for kind, found in scoring.score_all(scorers, texts, LIMITS, 5).items():
        assert [row[kind] for row in rows] == pytest.approx(found, abs=1e-4)
        assert summary["mean"][kind] == pytest.approx(sum(map(float, found)) / len(found), abs=1e-4)  # type: ignore[arg-type]
    assert {row["rewards"] for row in rows} == {names(scorers)} == {summary["rewards"]}
    assert {row["source"] for row in rows} == {"round-1", "round-2"}


def test_one_reward_model_leaves_safety_empty(make_job: Any, samples: list[Path], rewards: list[Path]) -> None:
    job = make_job("score", Score(limits=LIMITS), rewards=rewards[:1], samples=samples)
    assert list(score.run(job)["mean"]) == ["helpfulness"]
    assert all(row["safety"] is None and row["helpfulness"] is not None for row in rows_of(job.out))


def test_a_killed_stage_continues_after_the_last_file(
    make_job: Any,
    samples: list[Path],
    rewards: list[Path],
    save_points: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_job("score", Score(limits=LIMITS), out="whole", rewards=rewards, samples=samples)
    summary = score.run(whole)
    calls, real = [0], score.score_all

    def counted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise Killed
        return real(*args)

    monkeypatch.setattr(score, "score_all", counted)
    each = {"save_steps": 1}
    given = {"rewards": rewards, "samples": samples, "runtime": each}
    with pytest.raises(Killed):
        score.run(make_job("score", Score(limits=LIMITS), out="first", saves=save_points(), **given))
    again = make_job("score", Score(limits=LIMITS), out="second", saves=save_points(), **given)
    assert score.run(again) == summary
    assert calls[0] == 5 and result(again.out) == result(whole.out)


def test_what_cannot_be_scored_is_an_error(
    make_job: Any, samples: list[Path], rewards: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="needs samples and reward models"):
        score.run(make_job("score", Score(limits=LIMITS), rewards=[], samples=samples))
    other = tmp_path / "other"
    shutil.copytree(samples[0], other)
    made = json.loads((other / "sampling.json").read_text())
    (other / "sampling.json").write_text(json.dumps({**made, "template": "another"}))
    with pytest.raises(StageError, match="2 different templates"):
        score.run(make_job("score", Score(limits=LIMITS), rewards=rewards, samples=[other, samples[1]]))
    with pytest.raises(StageError, match="they would read different texts"):
        score.run(make_job("score", Score(limits=LIMITS), rewards=rewards, samples=[other]))
