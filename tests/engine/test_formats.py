"""engine.formats: how rows of other people are read, and which are not."""

from typing import Any

import pytest

from configs.recipes import Source
from engine.formats import dialogue, is_held_out, typed
from engine.sources import Refusal

USER, SAID = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


def read(raw: dict[str, Any], rows: str, max_chars: int = 1000, **source: Any) -> dict[str, Any]:
    return typed(raw, Source(path="a.jsonl", **source), rows, "a.jsonl", max_chars)


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": " hello ", "response": "hi\n"},
        {"messages": [USER, SAID]},
        {"messages": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
        {"text": "\n\nHuman: hello\n\nAssistant: hi"},
        {"prompt": "\n\nHuman: hello\n\nAssistant:", "response": " hi"},  # as Dahoas/rm-static has it
    ],
)
def test_every_format_gives_the_same_example(raw: dict[str, Any]) -> None:
    row = read(raw, "examples")
    assert row["messages"] == [USER, SAID]
    assert (row["category"], row["is_safety"], row["source"]) == ("general", False, "a.jsonl")
    assert read(raw, "prompts")["messages"] == [USER]


def test_columns_are_mapped_and_extra_input_is_joined() -> None:
    raw = {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be brief."}
    row = read(
        raw, "examples", columns={"prompt": "instruction", "response": "output"}, category="maths", is_safety=True
    )
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add.\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert (row["category"], row["is_safety"]) == ("maths", True)


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "hello", "chosen": "hi", "rejected": "no"},
        {"messages": [USER], "chosen": "hi", "rejected": "no"},
        {"chosen": [USER, SAID], "rejected": [USER, {"role": "assistant", "content": "no"}]},
        {"chosen": "\n\nHuman: hello\n\nAssistant: hi", "rejected": "\n\nHuman: hello\n\nAssistant: no"},
        {"prompt": "\n\nHuman: hello\n\nAssistant:", "chosen": " hi", "rejected": " no"},
    ],
)
def test_every_format_gives_the_same_preference(raw: dict[str, Any]) -> None:
    row = read(raw, "preferences", kind="safety")
    assert (row["messages"], row["chosen"], row["rejected"]) == ([USER], "hi", "no")
    assert (row["kind"], row["annotator"], row["is_safety"], row["grade"]) == ("safety", "human", True, None)
    assert row["prompt_id"] == read({**raw, "grade": 2}, "preferences")["prompt_id"]  # named by the prompt


@pytest.mark.parametrize(
    ("rows", "raw", "reason"),
    [
        ("examples", {"prompt": "a"}, "column 'response' is missing; the row has prompt"),
        ("examples", {"prompt": "a", "response": "  "}, "column 'response' is empty"),
        ("examples", {"prompt": 5, "response": "a"}, "column 'prompt' holds a int, want text"),
        ("examples", {"prompt": None, "response": "a"}, "column 'prompt' holds a NoneType"),
        ("examples", {"messages": [USER]}, "must end with an assistant turn"),
        ("examples", {"messages": []}, "want a list of messages"),
        ("examples", {"messages": "hello"}, "want a list of messages, found str"),
        ("examples", {"messages": [SAID, USER]}, "turn 1 is by assistant, want user"),
        ("examples", {"messages": [USER, USER, SAID]}, "turn 2 is by user, want assistant"),
        ("examples", {"messages": [USER, {"role": "tool", "content": "x"}]}, "role 'tool'"),
        ("examples", {"messages": [USER, {"role": "assistant", "content": " "}]}, "an empty assistant turn"),
        ("examples", {"messages": [{"role": "system", "content": "x"}]}, "only a system turn"),
        ("examples", {"messages": [USER, {"role": "system", "content": "x"}]}, "turn 2 is by system"),
        ("examples", {"prompt": "a", "response": "b", "weight": "heavy"}, "column 'weight' holds a str"),
        ("preferences", {"prompt": "a", "chosen": "x", "rejected": " x "}, "chosen equals rejected"),
        ("preferences", {"prompt": "a", "chosen": "x"}, "column 'rejected' is missing"),
        ("preferences", {"prompt": "a", "chosen": "x", "rejected": "y", "grade": 4}, "grade 4: want 0"),
        ("preferences", {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_safe": "yes"}, "want true or false"),
        (
            "preferences",
            {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
            "differ before the last assistant turn",
        ),
        (
            "preferences",
            {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: "},
            "must end with an assistant turn that says something",
        ),
        ("prompts", {"prompt": "a", "is_safety": 1}, "column 'is_safety' holds a int"),
        ("prompts", {"prompt": "x" * 1001}, "1001 characters, at most 1000"),
        ("documents", {"body": "x"}, "column 'text' is missing"),
    ],
)
def test_a_malformed_row_is_refused(rows: str, raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(raw, rows)
    assert reason in str(caught.value)


def test_a_format_that_does_not_fit_the_rows_is_refused() -> None:
    with pytest.raises(Refusal, match="format text does not give preferences; want one of pair, dialogue"):
        read({"text": "x"}, "preferences", format="text")
    with pytest.raises(Refusal, match="column 'question' is missing"):
        read({"prompt": "x"}, "prompts", columns={"prompt": "question"})


@pytest.mark.parametrize(
    "text", ["Human: a", "\n\nAssistant: a", "\n\nHuman: a\n\nHuman: b", "\n\nHuman: \n\nAssistant: x"]
)
def test_a_dialogue_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        dialogue(text)


def test_a_dialogue_keeps_every_turn() -> None:
    text = "\n\nHuman: a\n\nwith a gap\n\nAssistant: b\n\nHuman: c: d\n\nAssistant:"
    assert [(m["role"], m["content"]) for m in dialogue(text)] == [
        ("user", "a\n\nwith a gap"),
        ("assistant", "b"),
        ("user", "c: d"),
    ]


def test_the_split_depends_on_the_first_user_turn_alone() -> None:
    def chat(*contents: str) -> dict[str, Any]:
        roles = ("system", "user", "assistant", "user")
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents)]}

    turns = [f"What is {i} and {i}?" for i in range(500)]
    for turn in turns[:50]:
        same = (chat("s", turn), chat("t", f"  {turn.upper()} \n"), chat("s", turn, "x", "y"))
        dialogue = {"text": f"\n\nHuman: {turn}\n\nAssistant: yes\n\nHuman: more\n\nAssistant: no"}
        assert len({is_held_out(row, 0.2) for row in (*same, dialogue)}) == 1
    assert (
        len({is_held_out({"text": f"{turns[0]} {i}"}, 0.5) for i in range(9)}) == 2
    )  # other documents: the whole text
    share = sum(is_held_out(chat("s", turn), 0.2) for turn in turns) / len(turns)
    assert abs(share - 0.2) < 4 * (0.16 / 500) ** 0.5
    held = {turn for turn in turns if is_held_out(chat("s", turn), 0.1)}
    assert held < {turn for turn in turns if is_held_out(chat("s", turn), 0.2)}  # a larger share only adds


def test_names_are_the_content() -> None:
    one, two = read({"prompt": "a"}, "prompts"), read({"prompt": "b"}, "prompts")
    assert one["id"] == read({"prompt": "a", "other": 1}, "prompts")["id"] != two["id"]
    assert read({"prompt": "a", "id": 7}, "prompts")["id"] == "7"
