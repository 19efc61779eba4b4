"""Conversations with a small random model, in this process."""

import io
import sys
from pathlib import Path

import pytest

from configs.runtime import Runtime
from engine.chat import HELP, Talk, main
from engine.errors import StageError
from engine.models import load_policy
from engine.template import load_chat


@pytest.fixture
def talk(policy: Path) -> Talk:
    return Talk(load_policy(policy, Runtime()), load_chat(policy), temperature=0.8, seed=3, most=12)


def test_a_turn_is_read_with_those_before_it(talk: Talk, policy: Path) -> None:
    said = [talk.say("what is the name of the river?"), talk.say("and then?")]
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    assert [talk.messages[1]["content"], talk.messages[3]["content"]] == said
    other = Talk(talk.model, talk.chat, temperature=0.8, seed=3, most=12)
    assert other.say("Please tell me a story.") != said[0]
    assert other.say("and then?") != said[1]  # the same words and the same random numbers after another first turn


def test_a_seed_repeats_a_conversation_and_another_does_not(talk: Talk) -> None:
    first = talk.say("hello")
    for seed, same in ((3, True), (4, False)):
        assert (Talk(talk.model, talk.chat, 0.8, seed, 12).say("hello") == first) is same


def test_commands(talk: Talk) -> None:
    assert talk.command("/again") == "nothing was answered yet"
    first = talk.say("hello")
    again = talk.command("/again")
    assert again != first and [m["content"] for m in talk.messages] == ["hello", again]
    talk.command("/system Be brief.")
    talk.say("hello")
    talk.command("/reset")
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    talk.command("/system")
    assert talk.messages == [] and talk.command("/what") == HELP and talk.command("/quit") is None


def test_early_turns_give_way_and_a_turn_that_is_too_long_is_refused(talk: Talk) -> None:
    for _ in range(8):  # far more than the model's 128 positions
        talk.say("what is the name of the river?")
    with pytest.raises(StageError, match="at most 116 tokens"):
        talk.say("river " * 400)
    assert talk.messages[-1]["role"] == "assistant" and talk.say("hello") is not None


def test_lines_come_from_a_pipe_as_well(
    policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n/what\n" + "river " * 400 + "\n/quit\nnever read\n"))
    assert main([str(policy), "--max-new-tokens", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == HELP and lines[1].startswith("error: that turn is too long") and len(lines) == 2


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
