"""Log-probs of fixed responses under a frozen reference model, computed once and carried along by row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.batches import Padded, micro_batches
from engine.errors import StageError
from engine.examples import Item
from engine.forwards import logps
from engine.packing import arrange, shape_of

Logps = Sequence[Sequence[np.ndarray]]  # item, response -> [n] fp32


def reference_logps(model: Any, items: Sequence[Item], *, pad_id: int, rows: int, device: str = "cpu") -> Logps:
    """Log-probs of every item's responses under a frozen model: for each response [n] fp32."""
    found: list[list[np.ndarray]] = [[] for _ in items]
    shape = shape_of(model)
    with torch.inference_mode():
        for part in micro_batches([item.lengths for item in items], max(1, rows)):
            taken = [items[i] for i in part]
            pairs = [pair for item in taken for pair in item.pairs()]
            logp = logps(model, arrange(pairs, pad_id=pad_id, shape=shape).to(device)).cpu().numpy()
            row = 0
            for i, item in zip(part, taken):
                for response in item.responses:
                    found[i].append(logp[row, : len(response)].copy())
                    row += 1
    return found


def wide(padded: Padded, logp: Logps) -> Tensor:
    """Fixed log-probs in the batch's coordinates, 0 outside the mask."""
    wide = np.zeros(padded.response_mask.shape, dtype=np.float32)
    for row, values in enumerate(v for item in logp for v in item):
        wide[row, : len(values)] = values
    found = torch.from_numpy(wide).to(padded.ids.device)
    return torch.where(padded.response_mask, found, 0.0)


def flatten(reference: Logps) -> dict[str, Tensor]:
    """As tensors for a save point."""
    every = [values for item in reference for values in item]
    return {
        "values": torch.from_numpy(np.concatenate(every)),
        "lengths": torch.tensor([len(values) for values in every]),
        "responses": torch.tensor([len(item) for item in reference]),
    }


def unflatten(tensors: dict[str, Tensor]) -> Logps:
    """Back from `flatten`."""
    pieces = iter(tensors["values"].split(tensors["lengths"].tolist()))
    return [[next(pieces).numpy() for _ in range(size)] for size in tensors["responses"].tolist()]


def check_start(forwards: Mapping[str, Tensor], dtype: str) -> None:
    """Raise StageError unless policy and reference agree, as they must before the first step where both are one model."""
    gap = float((forwards["policy_logp"].detach() - forwards["reference_logp"]).abs().max())
    limit = 1e-3 if dtype == "float32" else 0.1
    if gap > limit:
        raise StageError(
            f"before the first step policy and reference differ by {gap:.2e} in a log-prob (at most "
            f"{limit:g} is float noise): the reference is not the model that training starts from"
        )
