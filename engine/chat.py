"""Talk to a version: `python -m engine.chat FOLDER` reads one line a turn from stdin and answers on stdout.

A line that begins with a slash is a command: /reset, /again, /system TEXT, /quit.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from configs.runtime import Runtime
from engine.errors import StageError
from engine.generate import generate
from engine.models import load_policy
from engine.template import load_chat

MOST_TOKENS = 256  # of an answer, where the model has room for more
HELP = "/reset begins anew, /again answers anew, /system TEXT sets the system turn, /quit leaves"


@dataclass
class Talk:
    """A conversation with one model. `turn` names the random stream, so that a seed repeats a conversation."""

    model: Any
    chat: Any
    temperature: float
    seed: int
    most: int
    messages: list[dict[str, str]] = field(default_factory=list)
    turn: int = 0

    def say(self, text: str) -> str:
        """The model's answer to a user turn; both become part of the conversation."""
        self.messages.append({"role": "user", "content": text})
        return self.answer()

    def answer(self) -> str:
        """Answer the last user turn. Early turns are left out when the whole does not fit.

        Raises:
            StageError: the last turn alone is too long for the model.
        """
        room = getattr(self.model.config, "max_position_embeddings", None) or 4096
        most = min(self.most, room // 2)
        fitted = self.chat.fit_prompt(self.chat.asking(self.messages), room - most)
        if fitted is None:
            self.messages.pop()
            raise StageError(f"that turn is too long: the model reads at most {room - most} tokens")
        self.turn += 1
        (found,) = generate(
            self.model,
            self.chat,
            [self.chat.prompt_ids(fitted)],
            [("chat", self.turn)],
            seed=self.seed,
            stream="chat",
            temperature=self.temperature,
            max_new_tokens=most,
            rows=1,
        )
        text = self.chat.text(found.token_ids)
        self.messages.append({"role": "assistant", "content": text})
        return str(text)

    def command(self, line: str) -> str | None:
        """Do what a slash command asks and return what to print; None means to leave."""
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return None
        if name == "/reset":
            self.messages = [m for m in self.messages if m["role"] == "system"]
            return "a new conversation"
        if name == "/system":
            self.messages = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
            return (
                "a new conversation with that system turn" if rest.strip() else "a new conversation without system turn"
            )
        if name == "/again":
            if not self.messages or self.messages[-1]["role"] != "assistant":
                return "nothing was answered yet"
            self.messages.pop()
            return self.answer()
        return HELP


def main(arguments: list[str]) -> int:
    """Read turns until the end of input; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.chat", description=__doc__)
    parser.add_argument("folder", type=Path, help="a model of ours")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=MOST_TOKENS)
    given = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        model = load_policy(given.folder, Runtime())
        talk = Talk(model, load_chat(given.folder), given.temperature, given.seed, given.max_new_tokens)
    except (StageError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  # gives input() line editing and a history

        print(HELP)
    while True:
        try:
            line = input("you: " if terminal else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            break
        if not line:
            continue
        try:
            said = talk.command(line) if line.startswith("/") else talk.say(line)
        except StageError as error:
            said = f"error: {error}"
        if said is None:
            break
        print(said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
