"""The conversation in a process of its own; what is said in it: tests/engine/test_chat.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.chat import ROOT
from tests.engine.tiny_models import tiny_config, train_tokenizer

TALK = "from pathlib import Path; import sys; from cli.chat import chat_with; sys.exit(chat_with(Path(sys.argv[1])))"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    from configs.recipes import Template
    from engine.models import new_model, save_model
    from engine.template import make_chat

    chat = make_chat(train_tokenizer(), Template())
    save_model(new_model(tiny_config("llama", len(chat.tokenizer)), seed=5), chat, tmp_path, "policy")
    return tmp_path


def test_stdin_goes_to_the_model_and_its_answers_come_out(version: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TALK, str(version)]
    said = "what is the name of the river?\n/again\n/quit\n"
    found = subprocess.run(command, input=said, capture_output=True, text=True, env=environment, timeout=120)
    assert found.returncode == 0 and found.stderr == ""
    assert found.stdout.count("\n") >= 2 and len(found.stdout) > 20
