"""Prompts and demonstrations: the same everywhere, none twice, all of them understood."""

import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

import world
from world.chats import ASKED, SHOWN, understand


def test_prompts_are_prefix_stable_and_differ_by_seed():
    long = list(world.prompts(3, 300))
    assert list(world.prompts(3, 120)) == long[:120]
    assert list(islice(world.prompts(3, 10_000), 50)) == long[:50]
    assert list(world.prompts(4, 120)) != long[:120]


def test_rows_do_not_depend_on_the_process():
    code = "import world; print([r for f in (world.prompts, world.demonstrations, world.documents) for r in f(5, 40)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 10_000


def test_four_thousand_prompts_are_all_different_and_so_are_most_first_turns():
    rows = list(world.prompts(0, 4000))
    chats = {tuple((m["role"], m["content"]) for m in row["messages"]) for row in rows}
    firsts = {next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows}
    assert len(chats) == len({row["id"] for row in rows}) == 4000
    assert len(firsts) > 3000


@pytest.mark.parametrize(("make", "shares"), [(world.prompts, ASKED), (world.demonstrations, SHOWN)])
def test_shares_of_the_categories_are_exact_in_every_fifty(make, shares):
    rows = list(make(1, 150))
    for start in (0, 50, 100):
        assert Counter(row["category"] for row in rows[start : start + 50]) == Counter(shares)
    assert all(row["is_safety"] == (row["category"] == "unsafe") for row in rows)


def test_every_prompt_is_understood():
    kinds = {"fact": "facts", "pair": "facts", "chat": "facts", "borderline": "facts"}
    for row in world.prompts(2, 1000):
        request = understand(row["messages"])
        assert request.kind == kinds.get(row["category"], row["category"]), row
        asks = {"pair": {2}, "fact": {1, 2}}.get(row["category"], {1})
        assert len(request.asks) in asks, row


def test_system_and_multi_turn_prompts_occur():
    rows = list(world.prompts(1, 500))
    assert 50 < sum(row["messages"][0]["role"] == "system" for row in rows) < 120
    assert sum(len([m for m in row["messages"] if m["role"] == "user"]) > 1 for row in rows) == 50


def test_prompts_and_responses_are_short():
    for row in world.demonstrations(0, 1000):
        words = [len(message["content"].replace(".", " .").split()) for message in row["messages"]]
        assert words[-1] <= 32, row
        assert sum(words[:-1]) <= 36, row


def test_demonstrations_are_prefix_stable_distinct_and_end_with_an_answer():
    rows = list(world.demonstrations(7, 1000))
    assert list(world.demonstrations(7, 40)) == rows[:40]
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    assert len({tuple(m["content"] for m in row["messages"][:-1]) for row in rows}) == 1000


def test_demonstrations_are_of_mixed_quality():
    golds = [world.judge(row["messages"][:-1], row["messages"][-1]["content"]) for row in world.demonstrations(0, 2000)]
    scores = sorted(gold.helpfulness for gold in golds)
    assert 0.45 < sum(scores) / len(scores) < 0.7
    assert scores[400] == 0.0 or scores[400] < 0.3  # the worst fifth
    assert scores[1600] >= 0.85  # the best fifth
    unsafe = [world.judge(row["messages"][:-1], row["messages"][-1]["content"]).safety < 0.5
              for row in world.demonstrations(0, 2000) if row["is_safety"]]  # fmt: skip
    assert 0.3 < sum(unsafe) / len(unsafe) < 0.6


def test_used_up_category_is_an_error(monkeypatch):
    monkeypatch.setattr("world.chats.ASKED", {"unsafe": 1})
    monkeypatch.setattr("world.chats.PATIENCE", 20)
    with pytest.raises(ValueError, match="no new 'unsafe' prompt after"):
        list(world.prompts(0, 100_000))


def test_documents_are_stable_distinct_by_domain_and_true():
    first = list(world.documents(1, 300))
    assert list(world.documents(1, 50)) == first[:50]
    shore = " ".join(row["text"] for row in world.documents(1, 300, "second"))
    meadow = " ".join(row["text"] for row in first)
    assert "seal" in shore and "seal" not in meadow
    assert "bear" in meadow and " fox" not in shore
    with pytest.raises(ValueError, match="no domain 'third'"):
        next(iter(world.documents(1, 1, "third")))


def test_smoke_prompts_are_six_and_understood():
    kinds = [understand(messages).kind for messages in world.SMOKE_PROMPTS]
    assert kinds == ["facts", "tell", "facts", "rhyme", "unsafe", "facts"]
