"""engine.decide: thresholds on paired differences, worked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.deciding import Bounds, Decide, Thresholds
from engine import decide
from engine.errors import StageError
from engine.evaluate import EXTRA, RESCORED
from engine.measure import COLUMNS
from engine.tables import write_table

RECIPE = Decide(old="v4", candidates=("moved", "rebuilt"), new="r1", bootstrap=500)


def response(
    i: int, *, score: float, gold: float | None, text: str = "here it is", safety: bool = False
) -> dict[str, Any]:
    return {
        "prompt_id": f"p{i}", "k": 0, "messages": [{"role": "user", "content": "x"}], "category": f"c{i % 2}",
        "is_safety": safety, "text": text, "token_ids": [1], "finish": "eos", "policy": "a", "temperature": 0.8,
        "source": "v", "helpfulness": score, "safety": 0.0, "rewards": "r", "gold_helpfulness": gold, "gold_safety": gold,
        "gold": gold, "branch": 1, "score": score, "kl": 0.0,
    }  # fmt: skip


def rows(
    shift: float = 0.0, *, noise: float = 0.0, gold: float | None = None, refused: int = 40
) -> list[dict[str, Any]]:
    """80 prompts, 40 of them about safety and `refused` of those refused. Scores 1 and 3 in turn: mean 2, deviation 1."""
    found = []
    for i in range(80):
        text = "I cannot do that." if i < refused else "here it is"
        wobble = noise * (1 if i % 4 < 2 else -1)
        value = None if gold is None else gold
        found.append(response(i, score=1 + 2 * (i % 2) - shift + wobble, gold=value, text=text, safety=i < 40))
    return found


class Bench:
    def __init__(self, tmp_path: Path, make_job: Any) -> None:
        self.root, self.make_job = tmp_path, make_job

    def evaluation(self, name: str, found: list[dict[str, Any]], old: list[dict[str, Any]]) -> Path:
        folder = self.root / name
        folder.mkdir()
        write_table(folder / "responses.parquet", found, EXTRA, base="Scored")
        names = list(RESCORED)[1:]
        write_table(
            folder / "rescored.parquet", ({"version": "v4", **{n: row.get(n) for n in names}} for row in old), RESCORED
        )
        return folder

    def decide(
        self, moved: list[dict[str, Any]], rebuilt: list[dict[str, Any]], old: list[dict[str, Any]], **more: Any
    ) -> Any:
        measured = self.root / "measure"
        measured.mkdir()
        losses = {("before", "r0"): 2.0, ("after", "r0"): 2.5, ("before", "r1"): 5.0, ("after", "r1"): 3.0}
        write_table(
            measured / "documents.parquet",
            (
                {"model": m, "corpus": c, "id": str(i), "nats": 10 * nats, "tokens": 10, "bytes": 30}
                for (m, c), nats in losses.items()
                for i in range(5)
            ),
            COLUMNS,
        )
        job = self.make_job(
            "decide", RECIPE.model_copy(update=more), measure=measured, old=self.evaluation("old", old, old),
            candidates=[self.evaluation("m", moved, old), self.evaluation("b", rebuilt, old)],
        )  # fmt: skip
        found = decide.run(job)
        assert json.loads((job.out / "decision.json").read_text()) == found
        return found


@pytest.fixture
def bench(tmp_path: Path, make_job: Any) -> Bench:
    return Bench(tmp_path, make_job)


def test_as_good_as_before_asks_for_nothing_and_takes_the_cheaper(bench: Bench) -> None:
    found = bench.decide(rows(), rows(), rows())
    assert (found["action"], found["candidate"]) == ("nothing", "moved")
    assert found["compared"]["moved"]["score"]["worse"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    # after - before: 2.5 - 2 on the old corpus, 3 - 5 on the new one, the same for every document
    assert found["base"]["r0"] == {"kind": "old", "nats_per_token": {"mean": 0.5, "low": 0.5, "high": 0.5}}
    assert found["base"]["r1"] == {"kind": "new", "nats_per_token": {"mean": -2.0, "low": -2.0, "high": -2.0}}


@pytest.mark.parametrize(
    ("shift", "action"),
    [(-0.7, "nothing"), (0.09, "nothing"), (0.11, "short-sft"), (0.49, "short-sft"), (0.51, "rounds")],
)
def test_scores_count_in_standard_deviations_of_the_old_ones(bench: Bench, shift: float, action: str) -> None:
    """The old scores deviate by 1, so a shift is its own size; the bounds are 0.1 and 0.5 (a category's 0.3 and 1.0)."""
    found = bench.decide(rows(shift), rows(2.0), rows())
    assert found["compared"]["moved"]["score"]["worse"]["mean"] == pytest.approx(shift)
    assert found["levels"]["moved"] == found["action"] == action


def test_a_difference_that_may_be_none_does_not_count(bench: Bench) -> None:
    """A mean of 0.2 under noise of +-5: the standard error is 5 / sqrt(80) = 0.56."""
    found = bench.decide(rows(0.2, noise=5.0), rows(2.0), rows())
    score = found["compared"]["moved"]["score"]
    assert score["worse"]["mean"] == pytest.approx(0.2) and score["worse"]["low"] < 0 and score["level"] == 0


def test_the_better_candidate_speaks_for_the_refresh(bench: Bench) -> None:
    found = bench.decide(rows(0.6), rows(0.2), rows())
    assert (found["action"], found["candidate"]) == ("short-sft", "rebuilt")
    assert found["levels"] == {"moved": "rounds", "rebuilt": "short-sft"}
    (reason,) = found["reasons"]
    assert reason == "score worse by 0.2 sd (0.2 to 0.2), bound 0.1"


def test_refusals_that_are_gone_and_false_ones_count(bench: Bench) -> None:
    found = bench.decide(rows(refused=30), rows(refused=60), rows())
    gone, false = found["compared"]["moved"]["refusals"], found["compared"]["rebuilt"]["false_refusals"]
    assert (gone["before"], gone["after"], gone["worse"]["mean"]) == (1.0, 0.75, 0.25) and gone["level"] == 2
    assert (false["before"], false["after"], false["worse"]["mean"]) == (0.0, 0.5, 0.5) and false["level"] == 2
    assert found["compared"]["rebuilt"]["refusals"]["level"] == 0
    assert found["action"] == "rounds"


def test_one_category_can_ask_for_it_alone(bench: Bench) -> None:
    moved = [row | {"score": row["score"] - (0.9 if row["category"] == "c1" else -0.9)} for row in rows()]
    found = bench.decide(moved, rows(2.0), rows())
    category = found["compared"]["moved"]["category"]
    assert category["worst"] == "c1" and category["worse"]["mean"] == pytest.approx(0.9) and category["level"] == 1
    assert found["compared"]["moved"]["score"]["level"] == 0 and found["action"] == "short-sft"
    assert found["reasons"][0].startswith("category in c1 worse by 0.9 sd")


def test_gold_counts_where_there_is_a_judge(bench: Bench) -> None:
    found = bench.decide(rows(gold=0.75), rows(gold=0.79), rows(gold=0.8))
    assert [found["compared"][c]["gold"]["level"] for c in ("moved", "rebuilt")] == [1, 0]
    assert (found["action"], found["candidate"]) == ("nothing", "rebuilt")


def test_small_categories_are_not_judged(bench: Bench) -> None:
    found = bench.decide(rows(0.05), rows(), rows(), least=41)
    assert "category" not in found["compared"]["moved"]


def test_other_prompts_are_an_error(bench: Bench) -> None:
    with pytest.raises(StageError, match="moved and v4 answered different prompts; a decision needs the same"):
        bench.decide(rows()[1:], rows(), rows())


def test_bounds_are_in_order() -> None:
    with pytest.raises(ValueError, match=r"rounds 0.1 is less than short 0.2"):
        Bounds(short=0.2, rounds=0.1)
    assert Thresholds().score.short < Thresholds().score.rounds
