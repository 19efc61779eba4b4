from typing import Any

import pytest

import methods
from configs.recipes import Limits
from engine.errors import StageError
from engine.examples import UNKNOWN, Reader
from engine.template import Chat

LIMITS = Limits(prompt_tokens=40, response_tokens=12)


def reader(chat: Chat, name: str = "sft", limits: Limits = LIMITS) -> Reader:
    method = methods.load(name)
    return Reader(chat, limits, method, method.Config())


def example(*turns: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(turns)
    return {"id": "x", "messages": [{"role": r, "content": c} for r, c in zip(roles, turns)], "source": "s", **more}


def pair(chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "tell me"}]
    return {"messages": messages, "chosen": chosen, "rejected": rejected, "source": "s", "kind": "safety", **more}


def test_example_is_prompt_and_response_with_eos(chat: Chat) -> None:
    item = reader(chat).item(example("hello", "a bird"))
    assert item is not None
    assert item.prompt.tolist() == chat.prompt_ids([{"role": "user", "content": "hello"}])
    assert item.responses[0].tolist() == chat.response_ids("a bird") and item.responses[0][-1] == chat.eos_id


def test_cut_response_gets_no_artificial_eos(chat: Chat) -> None:
    read = reader(chat, limits=Limits(prompt_tokens=40, response_tokens=3))
    item = read.item(example("hello", "the red fox runs over the green hill"))
    assert item is not None and len(item.responses[0]) == 3 and chat.eos_id not in item.responses[0]
    assert read.counts["cut_responses"] == 1


def test_long_prompt_loses_early_turns_then_is_dropped_and_counted(chat: Chat) -> None:
    last = [{"role": "user", "content": "short"}]
    limits = Limits(prompt_tokens=len(chat.prompt_ids(last)), response_tokens=12)
    read = reader(chat, limits=limits)
    item = read.item(example("first question", "first response", "short", "yes"))
    assert item is not None and item.prompt.tolist() == chat.prompt_ids(last)
    assert read.item(example("a longer question than fits", "yes")) is None
    assert (
        read.counts["shortened_prompts"] == 1 and read.counts["dropped_long_prompt"] == 1 and read.counts["rows"] == 2
    )


def test_pair_equal_after_the_cut_is_dropped_and_counted(chat: Chat) -> None:
    read = reader(chat, "reward", Limits(prompt_tokens=40, response_tokens=3))
    assert read.item(pair("the red fox one", "the red fox two")) is None
    assert read.item(pair("same", "same")) is None
    assert read.counts["same_after_cut"] == 2
    kept = read.item(pair("one", "two", grade=2, chosen_safe=True, rejected_safe=None))
    assert kept is not None and kept.grade == 2.0 and kept.labels == ((1.0,), (UNKNOWN,)) and kept.scores == (1.0, 0.0)


def test_ranking_keeps_distinct_responses_with_their_scores(chat: Chat) -> None:
    read = reader(chat, "rrhf")
    row = {"messages": [{"role": "user", "content": "q"}], "source": "s", "attributes": None}
    item = read.item(row | {"responses": ["a", "b", "a"], "scores": [3.0, 2.0, 1.0]})
    assert item is not None and item.scores == (3.0, 2.0)
    assert item.responses[1].tolist() == chat.response_ids("b")
    assert read.item(row | {"responses": ["a", "a"], "scores": [1.0, 0.0]}) is None
    assert read.counts["dropped_no_choice"] == 1


def test_example_that_ends_with_a_question_is_refused(chat: Chat) -> None:
    with pytest.raises(StageError, match="ends with an assistant turn"):
        reader(chat).item(example("hello"))


def test_all_turns_are_trained_where_the_config_asks(chat: Chat) -> None:
    read = reader(chat, limits=Limits(prompt_tokens=80, response_tokens=12))
    read.turns = "all"
    talk = example("first", "one", "second", "two")
    item = read.item(talk)
    assert item is not None and item.learned[0] is not None
    ids, marks = chat.example_ids(talk["messages"], "all")
    assert [*item.prompt, *item.responses[0]] == ids
    assert [False] * len(item.prompt) + item.learned[0].tolist() == marks
