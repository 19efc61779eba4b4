"""Does a score depend on the company a response is scored in? Batch, padding, order and door, each against scoring alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.batches import Ids, collate
from engine.forwards import rewards
from engine.packing import arrange, shape_of

Pair = tuple[Ids, Ids]


def differences(model: Any, pairs: Sequence[Pair], pad_id: int) -> dict[str, float | None]:
    """Largest change of a score, in standard deviations of the scores, by what was changed.

    batch: all together, padded; packed: laid out as stages score them; order: reversed; padding: wider than the longest;
    plain: Hugging Face's own forward with padding on the right, by which others will use the model; plain_left: on the left.
    None where the model's config names no pad token, so that transformers refuses a batch.
    """
    with torch.inference_mode():
        alone = torch.cat([_scores(model, [pair], pad_id) for pair in pairs])
        longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        filler = (longest[0], [*longest[1], *longest[1]])
        found = {
            "batch": _scores(model, pairs, pad_id),
            "order": _scores(model, pairs[::-1], pad_id).flip(0),
            "padding": _scores(model, [*pairs, filler], pad_id)[: len(pairs)],
            "packed": _packed(model, pairs, pad_id),
            "plain": _plain(model, pairs, pad_id, left=False),
            "plain_left": _plain(model, pairs, pad_id, left=True),
        }
    spread = float(alone.double().std(correction=0))
    scale = spread if spread > 1e-6 else 1.0
    return {
        name: None if scores is None else float((scores - alone).abs().max()) / scale for name, scores in found.items()
    }


def _scores(model: Any, pairs: Sequence[Pair], pad_id: int) -> Tensor:
    return rewards(model, collate(pairs, pad_id=pad_id).to(_device(model))).float().cpu()


def _packed(model: Any, pairs: Sequence[Pair], pad_id: int) -> Tensor:
    batch = arrange(pairs, pad_id=pad_id, shape=shape_of(model)).to(_device(model))
    return rewards(model, batch).float().cpu()


def _plain(model: Any, pairs: Sequence[Pair], pad_id: int, *, left: bool) -> Tensor | None:
    """Scores of the model's own forward, which finds the last token by its config's pad id."""
    if model.config.get_text_config().pad_token_id is None:
        return None
    rows = [[*prompt, *response] for prompt, response in pairs]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, where] = torch.tensor([int(i) for i in row])
        mask[place, where] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    found: Tensor = model(**{name: value.to(_device(model)) for name, value in given.items()}).logits
    return found[:, 0].float().cpu()


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
