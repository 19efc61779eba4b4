"""Training state as named tensors in safetensors and numbers in JSON: what a save point holds, free of process layout.

Parameters and moments are keyed by parameter name. Loading copies into the tensors that are there, so that memory layout, and
with it every rounding, stays as in a run that was never interrupted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import StageError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors; the same tensors give the same bytes."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}, path)


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy a file's tensors into the given ones.

    Raises:
        StageError: names or shapes differ.
    """
    with safe_open(path, framework="pt") as file, torch.no_grad():
        stored = set(file.keys())
        if stored != set(tensors):
            odd = sorted(stored ^ set(tensors))
            raise StageError(f"{path.name}: save point and model differ in {', '.join(odd[:3])} ({len(odd)} in all)")
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            if found.shape != tensor.shape:
                raise StageError(f"{path.name}: {name} is {list(found.shape)}, want {list(tensor.shape)}")
            tensor.copy_(found)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, copied into memory."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)


def save_random(path: Path, generators: Mapping[str, torch.Generator] | None = None) -> None:
    """Write the state of torch's global generators and of the given ones."""
    states = {"torch": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    states |= {f"generator/{name}": generator.get_state() for name, generator in (generators or {}).items()}
    write_tensors(path, states)


def restore_random(path: Path, generators: Mapping[str, torch.Generator] | None = None) -> None:
    """Bring torch's global generators and the given ones back to where they were."""
    states = read_tensors(path)
    torch.random.set_rng_state(states["torch"])
    if cuda := [states[f"cuda{i}"] for i in range(torch.cuda.device_count()) if f"cuda{i}" in states]:
        torch.cuda.set_rng_state_all(cuda)
    for name, generator in (generators or {}).items():
        generator.set_state(states[f"generator/{name}"])


def sums(model: Any) -> dict[str, float]:
    """The sum of every trained parameter in fp64: tells whether training moved it."""
    return {n: float(p.detach().sum(dtype=torch.float64)) for n, p in model.named_parameters() if p.requires_grad}
