"""The ranking of a bake-off: Holm by hand, pairing, intervals, and who may be called better."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import Runtime
from configs.recipes import Rank
from engine.errors import StageError
from engine.evaluate import EXTRA
from engine.job import Job
from engine.rank import compare_all, p_value, rank, resampled, run
from engine.statistics import holm
from engine.tables import write_table

RECIPE = Rank(versions=("v0", "good", "bad"), seeds=(1,), planted="bad", bootstrap=2000)


def rows(values: list[float], seed: int = 0) -> list[dict[str, Any]]:
    """Held-out responses with these gold scores."""
    return [
        {"prompt_id": f"p{seed}-{i}", "k": 0, "messages": [{"role": "user", "content": "q"}], "category": "c", "text": "t",
         "is_safety": False, "token_ids": [5, 6, 5, 6, 2], "finish": "eos", "policy": "p", "temperature": 1.0, "source": "s",
         "rewards": "", "helpfulness": None, "safety": None, "gold_helpfulness": v, "gold_safety": 1.0, "gold": v,
         "branch": None, "score": None, "kl": 0.5}
        for i, v in enumerate(values)
    ]  # fmt: skip


def test_holm_by_hand() -> None:
    """Holm 1979: the smallest p times the number of tests, the next times one less, never below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_means_of_bootstrap_samples_have_the_variance_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 1, 400))
    drawn = resampled(values, 4000)
    assert drawn.shape == (2, 4000)
    assert drawn.mean(axis=1) == pytest.approx(values.mean(axis=(1, 2)), abs=0.005)
    assert drawn.std(axis=1) == pytest.approx(values.std(axis=(1, 2)) / 20, rel=0.06)


def test_the_same_draws_serve_all() -> None:
    """b = a + 0.01 everywhere: the difference is certain although both intervals are wide."""
    a = np.random.default_rng(2).normal(size=(1, 1, 50))
    drawn = resampled(np.concatenate([a, a + 0.01]), 500)
    assert drawn[1] - drawn[0] == pytest.approx(np.full(500, 0.01))
    scores = {"a": a[0], "b": a[0] + 0.01}
    (pair,) = compare_all(scores, dict(zip("ab", drawn)), 0.05)
    assert pair["significant"] and pair["difference"] == pytest.approx(-0.01) and pair["high"] < 0


def test_seeds_are_resampled_before_prompts() -> None:
    """Two seeds that disagree: nothing about other seeds follows from many prompts."""
    values = np.stack([np.full(500, 1.0), np.full(500, -0.6)])[None]
    gaps = resampled(values, 2000)[0]
    assert p_value(gaps) > 0.3
    assert p_value(resampled(np.full((1, 2, 500), 0.2), 2000)[0]) == pytest.approx(2 / 2001)


def test_p_value_counts_both_tails_and_never_reaches_zero() -> None:
    assert p_value(np.array([1.0] * 9)) == pytest.approx(0.2)
    assert p_value(np.array([1.0, 1.0, 1.0, -1.0])) == pytest.approx(0.8)
    assert p_value(np.array([0.0, 0.0])) == 1.0


def test_ranking_orders_compares_and_looks_for_the_planted_one() -> None:
    rng = random.Random(3)
    start = [rng.random() for _ in range(200)]
    given = {"v0": [rows(start)], "good": [rows([v + rng.gauss(0.1, 0.1) for v in start])],
             "bad": [rows([v + rng.gauss(-0.1, 0.1) for v in start])]}  # fmt: skip
    found = rank(given, RECIPE)
    assert [entry["name"] for entry in found["entries"]] == ["good", "v0", "bad"]
    assert found["by"] == "gold" and found["planted_is_last"] is True
    good, start_entry, bad = found["entries"]
    assert set(good["better_than"]) == {"v0", "bad"} and set(bad["worse_than"]) == {"v0", "good"}
    assert start_entry["against_start"] is None and good["against_start"]["significant"]
    assert good["against_start"]["low"] < 0.1 < good["against_start"]["high"]
    assert good["distinct_1"] == pytest.approx(3 / 1000) and good["length"] == 5
    reverse = rank(given, RECIPE.model_copy(update={"planted": "good"}))
    assert reverse["planted_is_last"] is False


def test_noise_is_not_called_better() -> None:
    rng = random.Random(5)
    given = {name: [rows([rng.random() for _ in range(80)])] for name in ("v0", "a", "b", "c")}
    found = rank(given, Rank(versions=tuple(given), seeds=(1,), bootstrap=2000))
    assert not any(entry["better_than"] or entry["worse_than"] for entry in found["entries"])
    assert not any(entry["against_start"]["significant"] for entry in found["entries"] if entry["against_start"])


def job(tmp_path: Path, given: list[list[dict[str, Any]]], recipe: Rank) -> Job:
    folders = []
    for i, one in enumerate(given):
        folder = tmp_path / f"e{i}"
        folder.mkdir()
        write_table(folder / "responses.parquet", one, EXTRA, base="Scored")
        folders.append(folder)
    (tmp_path / "out").mkdir()
    return Job("rank", recipe, {"evaluations": folders}, tmp_path / "out", Runtime())


def test_stage_reads_seed_by_seed(tmp_path: Path) -> None:
    values = [[0.5] * 30, [0.9] * 30, [0.1] * 30, [0.4] * 31, [0.8] * 31, [0.2] * 31]
    given = [rows(v, seed=i // 3) for i, v in enumerate(values)]
    recipe = RECIPE.model_copy(update={"seeds": (1, 2)})
    summary = run(job(tmp_path, given, recipe))
    assert summary["order"] == ["good", "v0", "bad"] and summary["prompts"] == 30
    found = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert found["entries"][0]["per_seed"] == pytest.approx([0.9, 0.8])


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    given = [rows([0.5] * 5), rows([0.5] * 5, seed=7), rows([0.5] * 5)]
    with pytest.raises(StageError, match="seed 1: the competitors answered 2 different sets of prompts"):
        run(job(tmp_path, given, RECIPE))
