"""Ghost Attention as a transform of dialogues: an instruction said once is kept over many turns. Plain Python.

Source: Llama 2 (Touvron et al. 2023), section 3.3 and A.3.5. Turns are {"role", "content"}; the instruction precedes the
user's words with one space between, which is ours.
"""

import random
from collections.abc import Sequence

Turns = list[dict[str, str]]


def for_sampling(turns: Turns, instruction: str) -> Turns:
    """The dialogue with the instruction before EVERY user turn: what the latest policy answers, turn by turn."""
    return [_instructed(turn, instruction) if turn["role"] == "user" else dict(turn) for turn in turns]


def for_training(turns: Turns, instruction: str) -> Turns:
    """The sampled dialogue with the instruction before the FIRST user turn only.

    Args:
        turns: user turns without the instruction, assistant turns sampled under `for_sampling`.

    Raises:
        ValueError: no user turn, or one that has the instruction already.
    """
    users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    if not users:
        raise ValueError("no user turn to carry the instruction")
    if said := [i for i in users if instruction in turns[i]["content"]]:
        raise ValueError(f"turn {said[0]} has the instruction already: give the dialogue without it")
    return [_instructed(turn, instruction) if i == users[0] else dict(turn) for i, turn in enumerate(turns)]


def trained_turns(turns: Turns) -> list[bool]:
    """Which turns bear loss: the last assistant turn alone; earlier ones were answered under another prompt.

    Raises:
        ValueError: the dialogue does not end with the assistant.
    """
    if not turns or turns[-1]["role"] != "assistant":
        raise ValueError(
            f"a dialogue to train on must end with the assistant, found {turns[-1]['role'] if turns else 'none'}"
        )
    return [False] * (len(turns) - 1) + [True]


def compose(constraints: Sequence[str], short_forms: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """A random instruction from one to all constraints, and the form to train on: half of the time the short one.

    Args:
        constraints: such as "Always answer with emojis."; short_forms: the same, shortened, in the same order.

    Returns:
        (instruction to sample with, instruction to train with).
    """
    if not constraints or len(constraints) != len(short_forms):
        raise ValueError(
            f"{len(constraints)} constraints and {len(short_forms)} short forms: want as many, at least one"
        )
    chosen = sorted(rng.sample(range(len(constraints)), rng.randint(1, len(constraints))))
    full = " ".join(constraints[i] for i in chosen)
    return full, " ".join(short_forms[i] for i in chosen) if rng.random() < 0.5 else full


def _instructed(turn: dict[str, str], instruction: str) -> dict[str, str]:
    return {**turn, "content": f"{instruction} {turn['content']}"}
