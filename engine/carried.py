"""The optimizer's state from one run to the next: moments by parameter name, and how many updates they have seen."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from configs.recipes import Optimizer
from engine import checkpoint
from engine.errors import StageError
from engine.sharding import Plain

FOLDER = "optimizer"  # in the model's folder, where nothing takes it for weights
MOMENTS = ("exp_avg", "exp_avg_sq")


class Carried(Plain):
    """A trainer whose AdamW may go on from an earlier run's moments; its own count of updates begins at 0.

    before: folder of the earlier run, None for a fresh state.
    """

    def __init__(self, model: Any, recipe: Optimizer, total: int, dtype: str, before: Path | None) -> None:
        super().__init__(model, recipe, total, dtype)
        self.earlier = 0
        if before is not None:
            self.earlier = updates_of(before)
            self._start_moments(0)
            checkpoint.read_into(_checked(before, self.moments()), self.moments())

    def moments(self) -> dict[str, Any]:
        """The moments by name; they are the live tensors."""
        return {name: tensor for name, tensor in self._tensors().items() if name.split("/")[0] in MOMENTS}

    def _start_moments(self, updates: int) -> None:
        super()._start_moments(self.earlier + updates)


def publish(trainer: Carried, out: Path) -> None:
    """Write the state into a model's folder: safetensors and the count of updates."""
    folder = out / FOLDER
    folder.mkdir()
    checkpoint.write_tensors(folder / "state.safetensors", trainer.moments())
    (folder / "state.json").write_text(json.dumps({"updates": trainer.earlier + trainer.updates}) + "\n")


def updates_of(folder: Path) -> int:
    """How many updates the state in a model's folder has seen.

    Raises:
        StageError: there is none.
    """
    path = folder / FOLDER / "state.json"
    if not path.is_file():
        raise StageError(
            f"{folder.name}: no {FOLDER}/state.json, so there is no optimizer state to carry; run it with "
            "publish_optimizer: true, or set optimizer_state: reset"
        )
    return int(json.loads(path.read_text())["updates"])


def _checked(folder: Path, wanted: dict[str, Any]) -> Path:
    """The file of the moments, if they are those of this model.

    Raises:
        StageError: other names or shapes.
    """
    path = folder / FOLDER / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    shapes = {name: list(tensor.shape) for name, tensor in wanted.items()}
    if odd := sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name)):
        raise StageError(
            f"{folder.name}: its optimizer state is of another model: {odd[0]} is {found.get(odd[0])} there and "
            f"{shapes.get(odd[0])} here ({len(odd)} differ); set optimizer_state: reset"
        )
    return path
