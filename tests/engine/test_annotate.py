"""engine.annotate: two responses a prompt and somebody's word (METHODS 2.3; trap T63)."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import world
from configs.recipes import Annotate, Ingest, Limits, Source
from configs.runtime import Runtime
from engine import annotate, ingest
from engine.errors import StageError
from engine.formats import is_held_out
from engine.job import Job
from storage.rows import read_rows

LIMITS = Limits(prompt_tokens=90, response_tokens=10)


def recipe(**more: Any) -> Annotate:
    return Annotate(**{"prompts": 24, "limits": LIMITS, "seed": 2, **more})


def annotated(make_job: Any, recipe: Annotate, **given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    job = make_job("annotate", recipe, **given)
    summary = annotate.run(job)
    return summary, list(read_rows(job.out / "rows.parquet", "Preference"))


@pytest.fixture(scope="module")
def two(policies: dict[str, Path]) -> dict[str, Path]:
    """Two different policies with one template."""
    return {"policy_a": policies["llama"], "policy_b": policies["qwen2"]}


def test_gold_annotators_judge_safety_on_safety_prompts(make_job: Any, two: Any, prompts: Path) -> None:
    summary, rows = annotated(make_job, recipe(), **two, prompts=prompts)
    assert summary["pairs"] == len(rows) == summary["helpfulness"] + summary["safety"]
    assert summary["prompts"] == 24 == len(rows) + summary["dropped"] + summary["identical"] + summary["unsafe_chosen"]
    for row in rows:
        assert row["kind"] == ("safety" if row["is_safety"] else "helpfulness")
        assert row["chosen"] != row["rejected"] and row["grade"] in (0, 1, 2, 3)
        assert row["agreement"] in (0.0, 1.0) and row["annotator"] == "gold" and row["source"] == "round-1"
        assert not (row["kind"] == "safety" and not row["chosen_safe"] and row["rejected_safe"])
    assert {row["kind"] for row in rows} == {"helpfulness", "safety"}


def test_the_word_is_the_annotators_own(make_job: Any, two: Any, prompts: Path) -> None:
    _, rows = annotated(make_job, recipe(), **two, prompts=prompts)
    from engine.judges import mood

    for row in rows:
        texts = (row["chosen"], row["rejected"])
        words = [
            world.annotate(row["messages"], a, b, row["kind"], mood(2, 1, row["prompt_id"], 0))
            for a, b in (texts, texts[::-1])
        ]
        assert row["grade"] in {word.grade for word in words}
        assert words[0].prefers_a or not words[1].prefers_a  # one of the two orders gives this preference


def test_pairs_that_would_teach_harm_are_dropped_and_counted() -> None:
    """METHODS 2.1: an unsafe response chosen over a safe one never reaches the safety set; elsewhere it may."""
    labels = [
        (kind, chosen, rejected)
        for kind in ("safety", "helpfulness")
        for chosen in (True, False)
        for rejected in (True, False)
    ]
    pairs = [{"kind": kind, "responses": ["a", "b"], "n": i} for i, (kind, _, _) in enumerate(labels)]
    words = lambda some: [annotate._word(p, True, 1, labels[p["n"]][1:], 1.0) for p in some]
    counts: Counter[str] = Counter()
    kept = list(annotate._judged([*pairs, {"kind": "safety", "responses": ["a", "a"], "n": 0}], words, counts))
    assert [(p["kind"], p["chosen_safe"], p["rejected_safe"]) for p in kept] == [
        label for label in labels if label != ("safety", False, True)
    ]
    assert (counts["unsafe_chosen"], counts["identical"], counts["safety"], counts["helpfulness"]) == (1, 1, 3, 4)


def test_one_kind_is_asked_on_all_prompts(make_job: Any, two: Any, prompts: Path) -> None:
    _, rows = annotated(make_job, recipe(kinds=("helpfulness",)), **two, prompts=prompts)
    assert {row["kind"] for row in rows} == {"helpfulness"} and any(row["is_safety"] for row in rows)


def test_the_same_policy_answers_twice_with_other_numbers(make_job: Any, policy: Path, prompts: Path) -> None:
    summary, rows = annotated(
        make_job, recipe(temperatures=(1.0, 1.0)), policy_a=policy, policy_b=policy, prompts=prompts
    )
    assert summary["identical"] < 3 and len(rows) > 10


def test_identical_responses_are_dropped_and_counted(make_job: Any, policy: Path, prompts: Path) -> None:
    cold = recipe(temperatures=(1e-6, 1e-6))  # both say the likeliest thing
    with pytest.raises(StageError, match=r"no preference came out.*'identical'"):
        annotated(make_job, cold, policy_a=policy, policy_b=policy, prompts=prompts)


def test_rounds_ask_fresh_prompts_and_results_repeat(make_job: Any, two: Any, prompts: Path) -> None:
    asked = []
    for turn in (1, 2):
        _, rows = annotated(make_job, recipe(prompts=12, round=turn), out=f"r{turn}", **two, prompts=prompts)
        asked.append({row["prompt_id"] for row in rows})
    assert asked[0] and asked[1] and not asked[0] & asked[1]
    small = {"runtime": {"sample_rows": 6}}
    assert annotated(make_job, recipe(), out="a", **two, prompts=prompts) == annotated(
        make_job, recipe(), out="b", **two, prompts=prompts, **small
    )


def test_tier_prefers_the_stronger_writer(make_job: Any, two: Any, prompts: Path) -> None:
    _, gold = annotated(make_job, recipe(), **two, prompts=prompts)
    _, rows = annotated(make_job, recipe(annotator="tier"), **two, prompts=prompts)
    assert {(row["annotator"], row["grade"], row["chosen_safe"]) for row in rows} == {("tier", None, None)}
    _, swapped = annotated(
        make_job, recipe(annotator="tier", temperatures=(1.1, 0.8)), policy_a=two["policy_b"], policy_b=two["policy_a"],
        prompts=prompts,
    )  # fmt: skip
    texts = {frozenset((row["chosen"], row["rejected"])) for row in gold}
    assert sum(frozenset((row["chosen"], row["rejected"])) in texts for row in rows) >= len(gold)
    assert {row["chosen"] for row in rows} != {row["chosen"] for row in swapped}
    with pytest.raises(StageError, match="two policies of different strength"):
        annotated(
            make_job, recipe(annotator="tier"), policy_a=two["policy_a"], policy_b=two["policy_a"], prompts=prompts
        )


def test_reward_models_prefer_what_they_score_higher(
    make_job: Any, two: Any, prompts: Path, rewards: list[Path]
) -> None:
    from engine.scoring import load_scorers, score_all

    _, rows = annotated(make_job, recipe(annotator="reward_model"), **two, prompts=prompts, rewards=rewards)
    scorers = load_scorers(rewards, Runtime())
    for row in rows:
        texts = [(row["messages"], row["chosen"]), (row["messages"], row["rejected"])]
        found = score_all(scorers, texts, LIMITS, 2)
        gap = float(found[row["kind"]][0]) - float(found[row["kind"]][1])  # type: ignore[arg-type]
        assert gap > -1e-5
        assert row["grade"] == sum(gap >= step for step in annotate.GRADES)
        assert row["chosen_safe"] == (float(found["safety"][0]) >= -1.7346)  # type: ignore[arg-type]
    with pytest.raises(StageError, match="needs the reward models of an earlier round"):
        annotated(make_job, recipe(annotator="reward_model"), **two, prompts=prompts)


def test_gold_without_a_judge_is_an_error(make_job: Any, two: Any, prompts: Path) -> None:
    with pytest.raises(StageError, match="needs a judge"):
        annotated(make_job, recipe(judge="none"), **two, prompts=prompts)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Human pairs: 80 prompts, two pairs each."""
    import json

    folder = tmp_path_factory.mktemp("given")
    rows = [
        {"prompt": f"p{i}", "chosen": f"yes {j}", "rejected": "no", "grade": 2} for i in range(80) for j in range(2)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Ingest(rows="preferences", sources=(Source(path=str(folder / "in.jsonl")),), held_out=0.2)
    ingest.run(Job(stage="ingest", recipe=recipe, inputs={}, out=folder, runtime=Runtime()))
    return folder


def test_given_pairs_are_dealt_out_over_the_rounds(make_job: Any, given: Path, tmp_path: Path) -> None:
    batches = []
    for turn in (1, 2, 3, 4):
        dealt = recipe(annotator="dataset", batches=4, round=turn)
        summary, rows = annotated(make_job, dealt, out=f"r{turn}", preferences=given)
        passed_on = list(read_rows(tmp_path / f"r{turn}" / "held_out.parquet"))
        assert summary["pairs"] == len(rows) and summary["held_out"] == len(passed_on) > 0
        assert not any(is_held_out(row, 0.2) for row in rows) and all(is_held_out(row, 0.2) for row in passed_on)
        batches.append([row["prompt_id"] for row in [*rows, *passed_on]])
    together = Counter(name for batch in batches for name in batch)
    assert len(together) == 80 and set(together.values()) == {2}  # every pair once, and pairs of a prompt together
    assert sum(len(set(batch)) for batch in batches) == 80
    assert all(5 <= len(set(batch)) <= 40 for batch in batches)
    with pytest.raises(StageError, match="round 5 asks for a batch of 4"):
        annotated(make_job, recipe(annotator="dataset", batches=4, round=5), preferences=given)


def test_a_killed_annotation_continues(
    make_job: Any, two: Any, prompts: Path, save_points: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"runtime": {"sample_rows": 3, "save_steps": 1}, "prompts": prompts, **two}
    whole = make_job("annotate", recipe(), out="whole", **small)
    summary = annotate.run(whole)
    calls, real = [0], annotate.generate

    def counted(*args: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:  # the second policy of the third chunk of six prompts
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(annotate, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        annotate.run(make_job("annotate", recipe(), out="first", saves=save_points(), **small))
    again = make_job("annotate", recipe(), out="second", saves=save_points(), **small)
    assert annotate.run(again) == summary and calls[0] == 6 + 4
    assert (again.out / "rows.parquet").read_bytes() == (whole.out / "rows.parquet").read_bytes()
