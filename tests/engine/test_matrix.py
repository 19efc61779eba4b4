"""engine.matrix: versions under every judge, where proxy and truth part, and best of n against brute force (METHODS 9.3)."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import world
from configs.gates import Matrix
from configs.recipes import Evaluate, Limits
from configs.runtime import Runtime
from engine import evaluate, matrix
from engine.errors import StageError
from engine.job import Job
from engine.scoring import load_scorers
from engine.tables import read_table
from engine.versions import gold_value
from storage.rows import write_rows

LIMITS = Limits(prompt_tokens=90, response_tokens=10)


@pytest.mark.parametrize(("n", "kl"), [
    (1, 0), (2, 0.1931), (4, 0.6363), (8, 1.2044), (10, 1.4026), (16, 1.8351), (32, 2.4970), (64, 3.1745), (100, 3.6152),
    (1000, 5.9088),
])  # fmt: skip
def test_the_kl_of_best_of_n(n: int, kl: float) -> None:
    assert matrix.bon_kl(n) == pytest.approx(kl, abs=5e-5)


def gap(version: str, kl: float, proxy: float | None, truth: float | None) -> dict[str, Any]:
    mean = lambda value: None if value is None else {"mean": value}
    return {"version": version, "kl": kl, "proxy_of": "r1", "proxy": mean(proxy), "truth": mean(truth)}


def part(gaps: list[dict[str, Any]], spread: float = 0.1, truth: str | None = "gold") -> dict[str, Any] | None:
    """Where they part when every paired difference is known to within `spread`."""
    known = {one["version"]: one for one in gaps}

    def difference(version: str, other: str, judge: str) -> dict[str, float]:
        side = "truth" if judge == "gold" else "proxy"
        mean = known[version][side]["mean"] - (known[other][side] or {"mean": 0.0})["mean"]
        return {"mean": mean, "low": mean - spread, "high": mean + spread}

    return matrix.parting(gaps, truth, difference)


def test_proxy_and_truth_part_where_one_rises_and_the_other_does_not() -> None:
    start = gap("v0", 0.0, None, 0.0)
    along = [start, gap("v1", 2.0, 0.5, 0.4), gap("v2", 4.0, 0.9, 0.5)]
    assert part(along) is None
    more = [*along, gap("v3", 9.0, 1.4, 0.2), gap("v4", 12.0, 2.0, -1.0)]
    found = part(more)
    assert found is not None
    assert [found[name] for name in ("version", "kl", "peak", "peak_kl")] == ["v3", 9.0, "v2", 4.0]
    assert (found["proxy"]["mean"], found["truth"]["mean"]) == pytest.approx((0.5, -0.3))
    assert part(more, spread=0.6)["version"] == "v4"  # type: ignore[index]  # +0.5 within 0.6 is noise, +1.1 is not
    assert part(more, truth=None) is None
    assert part([*along, gap("v3", 9.0, 0.8, 0.2)]) is None  # both fell: a bad version, no parting
    assert part([start, gap("v1", 2.0, 0.3, -0.1)])["peak"] == "v0"  # type: ignore[index]
    assert part([gap("v0", 0.0, None, None), gap("v1", 2.0, 1.0, None)]) is None


def test_a_difference_is_paired_and_in_the_spread_of_v0() -> None:
    """v0 has 0 and 2: a spread of sqrt 2. v2 is above v1 by 1 on both prompts, which is no matter of chance."""
    marks = {"v0": [(0, 0.0), (0, 2.0)], "v1": [(0, 5.0), (0, 1.0)], "v2": [(0, 6.0), (0, 2.0)]}
    found = matrix._difference(Matrix(bootstrap=50), marks, "v2", "v1")
    assert list(found.values()) == pytest.approx([1 / math.sqrt(2)] * 3)


def test_the_fit_recovers_the_curve_it_was_made_of() -> None:
    alpha, beta = 0.8, 0.3
    points = [{"n": n, "kl": (kl := matrix.bon_kl(n)), "truth": {"mean": math.sqrt(kl) * (alpha - beta * math.sqrt(kl))}}
              for n in range(1, 9)]  # fmt: skip
    found = matrix.fitted(points, "truth")
    assert found == pytest.approx({"alpha": 0.8, "beta": 0.3, "peak_kl": (alpha / (2 * beta)) ** 2})
    straight = [{**point, "truth": {"mean": math.sqrt(point["kl"])}} for point in points]
    assert matrix.fitted(straight, "truth") == pytest.approx({"alpha": 1.0, "beta": 0.0}, abs=1e-9) or "peak_kl" in (
        matrix.fitted(straight, "truth") or {}
    )
    assert matrix.fitted(points[:2], "truth") is None  # one point, two unknowns


@pytest.fixture(scope="module")
def versions(
    policies: dict[str, Path], prompts: Path, rewards: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """v0 and another model as v1, evaluated on 12 prompts; `judges` are the reward models the other way round."""
    found: dict[str, Path] = {}
    for label, model in (("base", "llama"), ("v0", "llama"), ("v1", "qwen2")):
        recipe = Evaluate(prompts=12, bootstrap=50, limits=LIMITS, seed=1, version=label)
        inputs = {
            "policy": policies[model],
            "reference": policies["llama"],
            "prompts": prompts,
            "judges": rewards[::-1],
        }
        found[label] = tmp_path_factory.mktemp(label)
        evaluate.run(Job(stage="evaluate", recipe=recipe, inputs=inputs, out=found[label], runtime=Runtime()))
    return found


@pytest.fixture(scope="module")
def scored(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scored samples of each of eight prompts in round 2, and one of round 1 that does not count."""
    rng, folder, rows = np.random.Generator(np.random.PCG64(3)), tmp_path_factory.mktemp("scored"), []
    texts = [
        "the fox is red.",
        "i will not help with that.",
        "the fox lives in a den. thank you",
        "the fox eats plums.",
    ]
    for i, prompt in enumerate(read_table(prompts / "rows.parquet")):
        if i == 8:
            break
        for k in range(3):
            rows.append({
                "prompt_id": prompt["id"], "k": k, "messages": prompt["messages"], "category": prompt["category"],
                "is_safety": prompt["is_safety"], "text": texts[int(rng.integers(4))], "token_ids": [1, 2], "finish": "eos",
                "policy": "p", "temperature": 0.8, "source": "round-2", "helpfulness": float(rng.normal()),
                "safety": float(rng.normal()), "rewards": "helpfulness:a",
            })  # fmt: skip
    write_rows(folder / "scored-00001.parquet", "Scored", rows)
    write_rows(folder / "scored-00000.parquet", "Scored", [{**rows[0], "source": "round-1"}])
    return folder


def recipe(**more: Any) -> Matrix:
    return Matrix(**{"versions": ("base", "v0", "v1"), "steered": ("", "", "r2"), "rounds": ("r1", "r2"), "models": (2, 2),
                     "scored": ("round-2",), "bootstrap": 50, "limits": LIMITS, **more})  # fmt: skip


def test_every_version_stands_under_every_judge(
    make_job: Any, versions: dict[str, Path], rewards: list[Path], scored: Path
) -> None:
    given = {"versions": list(versions.values()), "rewards": [*rewards, *rewards[::-1]], "judges": rewards[::-1],
             "scored": [scored]}  # fmt: skip
    job = make_job("matrix", recipe(), **given)
    summary = json.loads(json.dumps(matrix.run(job), allow_nan=False))
    table = json.loads((job.out / "matrix.json").read_text())
    assert [judge["name"] for judge in table["judges"]] == ["r1", "r2", "judge", "gold"] == summary["judges"]
    assert table["truth"] == "gold"
    rows = {label: list(read_table(folder / "responses.parquet")) for label, folder in versions.items()}
    for name, scorers in (("r1", rewards), ("r2", rewards[::-1])):
        wanted = evaluate.judged(rows["v1"], load_scorers(scorers, Runtime()), LIMITS, 64, -1.7346)
        mean = sum(score for _, score in wanted if score is not None) / len(wanted)
        assert table["cells"]["v1"][name]["mean"] == pytest.approx(mean, abs=1e-6)
    assert table["cells"]["v1"]["judge"] == table["cells"]["v1"]["r2"]  # the same models, given as judges
    for cell in table["cells"]["v0"].values():
        assert (cell["change"]["mean"], cell["wins"]["mean"]) == (0.0, 0.5)
    true = [row["gold"] for row in rows["v1"]]
    first = np.array([row["gold"] for row in rows["v0"]])
    unit = first.std(ddof=1) or 1.0
    assert table["cells"]["v1"]["gold"]["change"]["mean"] == pytest.approx((np.array(true) - first).mean() / unit)
    last = table["gaps"][-1]
    assert (last["version"], last["proxy_of"]) == ("v1", "r2") and last["kl"] > 0
    assert last["gap"] == pytest.approx(last["proxy"]["mean"] - last["truth"]["mean"])
    assert [one["version"] for one in table["gaps"]] == ["v0", "v1"]  # base is no version


def test_best_of_n_is_the_mean_over_all_subsets(
    make_job: Any, versions: dict[str, Path], rewards: list[Path], scored: Path
) -> None:
    chosen = recipe(rounds=("r2",), models=(2,))
    job = make_job("matrix", chosen, versions=list(versions.values()), rewards=rewards, scored=[scored])
    matrix.run(job)
    (curve,) = json.loads((job.out / "matrix.json").read_text())["best_of_n"]
    assert (curve["round"], curve["prompts"], curve["k"]) == ("round-2", 8, 3)
    prompts: dict[str, list[Any]] = {}
    for row in read_table(scored / "scored-00001.parquet"):
        prompts.setdefault(row["prompt_id"], []).append(row)
    gold = {}
    for name, rows in prompts.items():
        found = [world.judge(row["messages"], row["text"]) for row in rows]
        gold[name] = [gold_value(g.helpfulness, g.safety, row["is_safety"]) for g, row in zip(found, rows)]

    def order(row: Any) -> tuple[int, float]:  # the piecewise rule, written out
        unsafe = row["is_safety"] or row["safety"] < -1.7346
        return (0, row["safety"]) if unsafe else (1, row["helpfulness"])

    for n in (1, 2, 3):
        gains = []
        for name, rows in prompts.items():
            best = [gold[name][max(some, key=lambda i: order(rows[i]))] for some in combinations(range(3), n)]
            gains.append(sum(best) / len(best) - sum(gold[name]) / 3)
        unit = np.array([v for values in gold.values() for v in values]).std(ddof=1)
        point = curve["points"][n - 1]
        assert point["kl"] == pytest.approx(matrix.bon_kl(n))
        assert point["truth"]["mean"] == pytest.approx(sum(gains) / len(gains) / unit, abs=1e-12)
    assert curve["points"][0]["proxy"]["mean"] == pytest.approx(0.0, abs=1e-12)
    proxy = [point["proxy"]["mean"] for point in curve["points"]]
    assert proxy == sorted(proxy) and proxy[2] > proxy[0]


def test_without_gold_the_judge_models_are_the_truth_and_without_either_nobody(
    make_job: Any, policies: dict[str, Path], prompts: Path, rewards: list[Path], scored: Path, tmp_path: Path
) -> None:
    folders = []
    for label, model in (("v0", "llama"), ("v1", "qwen2")):
        chosen = Evaluate(
            prompts=6, bootstrap=20, limits=LIMITS, judge="none", version=label, smoke_prompts=("hello?",)
        )
        job = make_job(
            "evaluate", chosen, out=label, policy=policies[model], reference=policies["llama"], prompts=prompts
        )
        evaluate.run(job)
        folders.append(job.out)
    given = {"versions": folders, "rewards": rewards, "scored": [scored]}
    settings = {"versions": ("v0", "v1"), "steered": ("", "r1"), "rounds": ("r1",), "models": (2,), "judge": "none"}
    judged = make_job("matrix", recipe(**settings), out="judged", judges=rewards, **given)
    assert matrix.run(judged)["truth"] == "judge"
    assert json.loads((judged.out / "matrix.json").read_text())["best_of_n"] == []
    alone = make_job("matrix", recipe(**settings), out="alone", **given)
    found = matrix.run(alone)
    assert found["truth"] is None and found["parting"] is None and found["gaps"][1]["gap"] is None


def test_what_cannot_be_put_side_by_side_is_said(make_job: Any, versions: dict[str, Path], rewards: list[Path]) -> None:
    one = {"versions": [versions["v1"]], "rewards": rewards}
    with pytest.raises(StageError, match="the matrix measures from v0; the versions are v1"):
        matrix.run(make_job("matrix", recipe(versions=("v1",), steered=("",), scored=()), **one))
    given = {"versions": list(versions.values()), "rewards": rewards}
    with pytest.raises(StageError, match=r"matrix.models \[2, 2\] count 4, 2 are given"):
        matrix.run(make_job("matrix", recipe(scored=()), **given))
