"""Score a suite with a reward model, or with a policy and its reference: `python -m engine.panel SUITE MODEL`.

A folder of ours is read through the tokenizer and template on its card; any other Hugging Face folder through its own
tokenizer and chat template, its scores taken from its own forward.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from configs.runtime import Runtime
from engine import suites
from engine.batches import collate
from engine.errors import StageError
from engine.forwards import logps, rewards
from engine.models import load_policy, load_reward, quiet
from engine.suites import Messages, Question
from engine.template import CARD, load_chat, read_tokenizer

MAX_TOKENS = 2048  # the published runs' limit
Pair = tuple[list[int], list[int]]  # ids of prompt and response
Read = Callable[[Messages, str], Pair]
Scores = Callable[[Sequence[Pair]], list[float]]


def evaluate(
    suite: Path, model: Path, reference: Path | None, rows: int, say: Callable[[int, int], None]
) -> dict[str, Any]:
    """The suite's result. With a reference the score of a response is log pi(y|x) - log pi_ref(y|x), without a factor.

    Raises:
        StageError: what cannot be loaded or read, a reference that reads other tokens, a suite that is not whole.
    """
    questions = suites.load(suite)
    with torch.inference_mode():
        if reference is None:
            read, scores, limit = _reward(model)
        else:
            read, scores, limit = _implicit(model, reference)
        pairs = [read(question.messages, text) for question in questions for text in question.responses]
        fitted = [fit(pair, limit) for pair in pairs]
        found = _in_batches(fitted, scores, rows, say)
    result = suites.score(questions, _dealt(questions, found))
    cut = sum(short != pair for short, pair in zip(fitted, pairs))
    kind = "scalar" if reference is None else "implicit"
    return {
        **result,
        "questions": len(questions),
        "responses": len(pairs),
        "cut": cut,
        "kind": kind,
        "max_tokens": limit,
    }


def fit(pair: Pair, limit: int) -> Pair:
    """At most `limit` tokens: a response keeps its beginning and at least half of the room, a prompt its end."""
    prompt, response = pair
    if len(prompt) + len(response) <= limit:
        return pair
    room = max(limit - len(prompt), limit // 2)
    response = response[:room]
    return prompt[-(limit - len(response)) :], response


def _dealt(questions: Sequence[Question], found: Sequence[float]) -> list[list[float]]:
    scores = iter(found)
    return [[next(scores) for _ in question.responses] for question in questions]


def _in_batches(pairs: Sequence[Pair], scores: Scores, rows: int, say: Callable[[int, int], None]) -> list[float]:
    """Scores in order, computed longest first."""
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    found = [0.0] * len(pairs)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        for i, value in zip(part, scores([pairs[i] for i in part]), strict=True):
            found[i] = value
        say(start + len(part), len(order))
    return found


def _limit(model: Any) -> int:
    return min(MAX_TOKENS, int(getattr(model.config, "max_position_embeddings", MAX_TOKENS)))


def _reward(folder: Path) -> tuple[Read, Scores, int]:
    if _kind(folder) == "policy":
        raise StageError(
            f"{folder}: a policy, no reward model; give --reference to score with what it prefers over that"
        )
    labels = 1 if (folder / CARD).is_file() else _labels(folder)
    if labels != 1:
        raise StageError(f"{folder}: a classifier of {labels} labels, no reward model; want one with a single output")
    model = load_reward(folder, Runtime())
    if (folder / CARD).is_file():
        chat = load_chat(folder)
        return _ours(chat), lambda pairs: rewards(model, collate(pairs, pad_id=chat.pad_id)).tolist(), _limit(model)
    tokenizer = _tokenizer(folder)
    pad_id = model.config.pad_token_id
    if pad_id is None:
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        model.config.pad_token_id = pad_id

    def scores(pairs: Sequence[Pair]) -> list[float]:
        padded = collate(pairs, pad_id=pad_id)
        found: list[float] = (
            model(input_ids=padded.ids, attention_mask=padded.attention_mask).logits[:, 0].float().tolist()
        )
        return found

    return _theirs(tokenizer), scores, _limit(model)


def _kind(folder: Path) -> str:
    """What a model is, by our card or by its architecture: policy, reward (a sequence classifier), or "" for another."""
    if (folder / CARD).is_file():
        return str(json.loads((folder / CARD).read_text())["kind"])
    names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    endings = {"ForCausalLM": "policy", "LMHeadModel": "policy", "ForSequenceClassification": "reward"}
    return next((kind for ending, kind in endings.items() if names[0].endswith(ending)), "")


def _labels(folder: Path) -> int:
    """How many outputs a sequence classifier has."""
    return int(AutoConfig.from_pretrained(folder).num_labels)


def _implicit(folder: Path, reference: Path) -> tuple[Read, Scores, int]:
    for one in (folder, reference):
        if _kind(one) == "reward":
            raise StageError(f"{one}: a reward model, no policy; --reference is for a policy and the one it came from")
    ours = (folder / CARD).is_file()
    if ours != (reference / CARD).is_file():
        raise StageError(
            f"{folder} and {reference}: one is a model of ours and one is not; they would read different texts"
        )
    if ours:
        chat = load_chat(folder)
        if load_chat(reference).fingerprint != chat.fingerprint:
            raise StageError(f"{folder} and {reference} read through different templates; log-probs cannot be compared")
        read, pad_id = _ours(chat), chat.pad_id
    else:
        tokenizer, other = _tokenizer(folder), _tokenizer(reference)
        if tokenizer.get_vocab() != other.get_vocab():
            raise StageError(f"{folder} and {reference} have different vocabularies; log-probs cannot be compared")
        read, pad_id = _theirs(tokenizer), tokenizer.pad_token_id or 0
    policy, fixed = load_policy(folder, Runtime()), load_policy(reference, Runtime())

    def scores(pairs: Sequence[Pair]) -> list[float]:
        padded = collate(pairs, pad_id=pad_id)
        gap = logps(policy, padded).double() - logps(fixed, padded).double()
        return [float(value) for value in gap.sum(1)]

    return read, scores, min(_limit(policy), _limit(fixed))


def _ours(chat: Any) -> Read:
    return lambda messages, text: (chat.prompt_ids(messages), chat.response_ids(text))


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = read_tokenizer(folder)
    if not tokenizer.chat_template:
        raise StageError(f"{folder.name}: its tokenizer has no chat template; put its chat_template.jinja beside it")
    return tokenizer


def _theirs(tokenizer: PreTrainedTokenizerFast) -> Read:
    """By the model's own template: the response is what the whole conversation has beyond the prompt.

    The text is encoded whole, as published runs do: some tokenizers (SentencePiece) give a part of it other tokens. A
    token that holds characters of both belongs to the response.
    """

    def read(messages: Messages, text: str) -> Pair:
        whole = str(tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False))
        opened = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        if not whole.startswith(opened):
            opened = str(tokenizer.apply_chat_template(messages, tokenize=False))
        if not whole.startswith(opened) or len(opened) == len(whole):
            raise StageError("the chat template renders a prompt otherwise than a conversation that goes on from it")
        found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
        cut = next((i for i, end in enumerate(ends) if end > len(opened)), len(ids))
        prompt, response = ids[:cut], ids[cut:]
        bos = tokenizer.bos_token_id
        if bos is not None and ids[0] != bos and tokenizer.encode("x")[0] == bos:
            prompt = [bos, *prompt]  # the tokenizer opens every text with it, the template leaves it to the tokenizer
        if not prompt or not response:
            raise StageError("the chat template and the tokenizer leave a prompt or a response without a token")
        return prompt, response

    return read


def main(arguments: Sequence[str]) -> int:
    """Print one JSON line with the result, or one line on stderr."""
    parser = argparse.ArgumentParser(prog="engine.panel")
    parser.add_argument("suite", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    say = lambda done, total: (
        print(f"\r{done} of {total} responses", end="", file=sys.stderr) if sys.stderr.isatty() else None
    )
    try:
        for folder in filter(None, (given.model, given.reference)):
            if not (folder / "config.json").is_file():
                raise StageError(f"{folder}: no model folder (config.json)")
        with quiet():
            print(json.dumps(evaluate(given.suite, given.model, given.reference, given.rows, say), allow_nan=False))
        return 0
    except Exception as error:  # a stranger's model, template or file can fail in any way: one line, whatever it is
        known = isinstance(error, (StageError, OSError, ValueError))
        text = " ".join(str(error).split())
        text = text if known else f"{given.model.name}: {type(error).__name__}: {text}"
        print(f"\nerror: {text}" if sys.stderr.isatty() else text, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
