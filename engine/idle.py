"""Frozen models lie in main memory while nobody reads them, and on the device while somebody does."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any


@contextlib.contextmanager
def awake(models: Sequence[Any], device: str) -> Iterator[None]:
    """Inside, the models' weights are on the device; afterwards they are where they were before.

    Nothing is copied back: the weights are frozen, and those that were there before are kept.
    """
    held = [(tensor, tensor.data) for model in models for tensor in chain(model.parameters(), model.buffers())]
    for tensor, data in held:
        tensor.data = data.to(device, non_blocking=True)
    try:
        yield
    finally:
        for tensor, data in held:
            tensor.data = data
