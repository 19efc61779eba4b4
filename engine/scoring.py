"""Raw scores of reward models; `combine` (engine.piecewise) makes one ranking of two."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.recipes import Limits
from configs.runtime import Runtime
from engine.drawing import fingerprint
from engine.errors import StageError
from engine.forwards import attributes as outputs_of
from engine.models import load_reward
from engine.packing import arrange, shape_of
from engine.piecewise import combine
from engine.template import CARD, load_chat

__all__ = ["KINDS", "Scorer", "combine", "load_scorers", "names", "score_all", "score_outputs", "score_texts"]

KINDS = ("helpfulness", "safety")  # the order in which reward models are given
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Scorer:
    """A reward model with the template it reads through. `kind` says what it judges."""

    kind: str
    model: Any
    chat: Any
    name: str  # fingerprint of the weights
    own: bool = False  # it reads through a template or tokenizer of its own: texts, never the policy's ids
    attributes: tuple[str, ...] = ()  # names of its outputs where it has several; the first is its score


def load_scorers(folders: Sequence[Path], runtime: Runtime, template: str | None = None) -> list[Scorer]:
    """The reward models of a round, helpfulness first.

    template: fingerprint of the policy's tokenizer and template; a reward model that reads another way is refused, unless
        it was made on a base of its own (`reward_bases`) and says so.
    """
    if len(folders) > len(KINDS):
        raise StageError(f"{len(folders)} reward models given, want helpfulness and at most one more for safety")
    found = []
    for kind, folder in zip(KINDS, folders):
        chat = load_chat(folder)
        card = json.loads((folder / CARD).read_text())
        own = card.get("reads") == "own"
        if template is not None and chat.fingerprint != template and not own:
            raise StageError(
                f"the {kind} reward model has template and tokenizer {chat.fingerprint[:12]}, the policy {template[:12]}: "
                "they would read different texts; train the reward model from this policy's family, or give it reward_bases"
            )
        model, several = load_reward(folder, runtime), tuple(card.get("attributes", ()))
        found.append(Scorer(kind, model, chat, fingerprint(folder), own, several))
    return found


def names(scorers: Sequence[Scorer]) -> str:
    """What the `rewards` column says: which weights gave the scores. Scores under different names are not comparable."""
    return ",".join(f"{scorer.kind}:{scorer.name}" for scorer in scorers)


def score_texts(
    reward_model: Any,
    chat: Any,
    rows: Sequence[tuple[Messages, str | Sequence[int]]],
    limits: Limits,
    rows_per_batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Raw scores, one a row, in order: the first of `score_outputs`."""
    return [found[0] for found in score_outputs(reward_model, chat, rows, limits, rows_per_batch, progress)]


def score_outputs(
    reward_model: Any,
    chat: Any,
    rows: Sequence[tuple[Messages, str | Sequence[int]]],
    limits: Limits,
    rows_per_batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """All outputs of a reward model, one list a row, in order; most have one.

    Args:
        rows: (messages, response); a text is read as the reward model was trained to read it (text + EOS, cut to the
            limit), token ids are taken as they are. Equal rows are computed once.
        rows_per_batch: rows in one forward pass; rows that share a prompt go together and compute it once.

    Raises:
        StageError: a prompt that does not fit, a response without tokens, a score that is not finite.
    """
    return score_together([reward_model], chat, rows, limits, rows_per_batch, progress)[0]


def score_together(
    models: Sequence[Any],
    chat: Any,
    rows: Sequence[tuple[Messages, str | Sequence[int]]],
    limits: Limits,
    rows_per_batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[list[float]]]:
    """`score_outputs` of each of some models of one shape that read alike: rows are tokenized and laid out once for all."""
    read: dict[str, tuple[int, ...]] = {}  # K responses share a prompt: it is tokenized once
    pairs = [_ids(chat, messages, response, limits, read) for messages, response in rows]
    unique = sorted(set(pairs), key=lambda pair: (len(pair[0]), pair[0], len(pair[1]), pair[1]))
    scores: list[dict[Any, list[float]]] = [{} for _ in models]
    device, shape = next(models[0].parameters()).device, shape_of(models[0])
    with torch.inference_mode():
        for first in range(0, len(unique), rows_per_batch):
            batch = unique[first : first + rows_per_batch]
            padded = arrange(batch, pad_id=chat.pad_id, shape=shape).to(device)
            for model, held in zip(models, scores):
                values = outputs_of(model.eval(), padded).float()
                if not bool(torch.isfinite(values).all()):
                    raise StageError("a reward model gave a score that is not finite; its weights hold NaN or infinity")
                held.update(zip(batch, values.tolist()))
            if progress:
                progress(first + len(batch), len(unique))
    return [[held[pair] for pair in pairs] for held in scores]


def score_all(
    scorers: Sequence[Scorer], rows: Sequence[tuple[Messages, str]], limits: Limits, rows_per_batch: int
) -> dict[str, list[Any]]:
    """Scores by kind; None for every row where no model judges that kind. With a model of attributes also `attributes`,
    all its outputs for each row."""
    found: dict[str, list[Any]] = {kind: [None] * len(rows) for kind in KINDS}
    alike: dict[Any, list[Scorer]] = {}
    for scorer in scorers:
        alike.setdefault((scorer.chat.fingerprint, shape_of(scorer.model)), []).append(scorer)
    for group in alike.values():
        every = score_together([one.model for one in group], group[0].chat, rows, limits, rows_per_batch)
        for scorer, outputs in zip(group, every):
            found[scorer.kind] = [one[0] for one in outputs]
            if scorer.attributes:
                found["attributes"] = outputs
    return found


def _ids(
    chat: Any, messages: Messages, response: str | Sequence[int], limits: Limits, read: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    key = json.dumps(messages)
    if key not in read:
        fitted = chat.fit_prompt(messages, limits.prompt_tokens)
        if fitted is None:
            raise StageError(
                f"a prompt to be scored is longer than limits.prompt_tokens {limits.prompt_tokens}: ..{key[-80:]}"
            )
        read[key] = tuple(chat.prompt_ids(fitted))
    ids = chat.response_ids(response) if isinstance(response, str) else response
    if len(ids) == 0:
        raise StageError("a response without tokens cannot be scored")
    return read[key], tuple(ids[: limits.response_tokens])
