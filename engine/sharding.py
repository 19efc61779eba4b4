"""What the loops do with a model that learns: backward, step, save, restore. `Plain` does it in one process with torch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.recipes import Optimizer
from configs.runtime import Runtime
from engine import checkpoint
from engine.batches import Padded
from engine.errors import NotFinite
from engine.forwards import compute
from methods import schedules


def decayed(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Trained parameters with and without weight decay: matrices are decayed; norms, biases, embeddings and heads are not."""
    spared: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in ("lm_head", "score", "embed_out"):
            spared.update(id(p) for p in module.parameters(recurse=False))
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    is_decayed = lambda p: p.ndim >= 2 and id(p) not in spared
    return [x for x in trained if is_decayed(x[1])], [x for x in trained if not is_decayed(x[1])]


class Schedule:
    """The learning rate of each of a run's steps. Step 1 is the first, so that none is spent at a rate of 0."""

    def __init__(self, recipe: Optimizer, total: int) -> None:
        self.recipe, self.total = recipe, total
        least = recipe.min_warmup_steps
        wanted = schedules.warmup_steps(total, recipe.warmup, least) if recipe.warmup or least else 0
        self.warmup = min(wanted, total // 2)  # a run shorter than its warm-up would never reach its rate; ours

    def rate(self, step: int) -> float:
        """Learning rate of step 1 .. total."""
        recipe = self.recipe
        if recipe.schedule == "constant":
            factor = schedules.constant(step, warmup=self.warmup)
        else:
            shape = schedules.cosine if recipe.schedule == "cosine" else schedules.linear
            factor = shape(step, total=self.total, warmup=self.warmup, floor=recipe.floor)
        return recipe.learning_rate * factor


class Alone:
    """What several processes do together, where there is one."""

    main = True  # this process speaks for the run

    def share(self, count: int) -> list[tuple[int, bool]]:
        """Which of a step's micro-batches this process computes: (index, whether it counts)."""
        return [(i, True) for i in range(count)]

    def everyone(self, value: Any) -> list[Any]:
        """What each process has found, in the order of the processes."""
        return [value]

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        return value

    def merge(self, metrics: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
        """Metrics (sum, count) of all processes as one."""
        return metrics

    def agree(self, flag: bool) -> bool:
        """What the first process says, everywhere."""
        return flag


ALONE = Alone()


class Plain(Alone):
    """A model and its AdamW in one process. Gradients of several `backward` calls add up until `step`."""

    def __init__(self, model: Any, recipe: Optimizer, total: int, dtype: str = "float32") -> None:
        self.model, self.clip, self.dtype = model, recipe.clip, dtype
        self.schedule = Schedule(recipe, total)
        self.updates = 0
        heavy, light = decayed(model)
        self._named = [*heavy, *light]
        groups = [
            {"params": [p for _, p in heavy], "weight_decay": recipe.weight_decay},
            {"params": [p for _, p in light], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True
        )

    @property
    def rate(self) -> float:
        """Learning rate of the coming step."""
        return self.schedule.rate(self.updates + 1)

    def begin(self, seed: int, step: int) -> None:
        """The global generator goes on from step to step; it is in every save point."""

    @property
    def reader(self) -> Any:
        """The model with all its weights, for reading and sampling; `refresh` brings it up to date."""
        return self.model

    def refresh(self) -> None:
        """Give `reader` the present weights; every process takes part."""

    def forward(self, names: tuple[str, ...], padded: Padded, temperature: float = 1.0) -> dict[str, Tensor]:
        """What a method's `forwards` asks of the model."""
        with torch.autocast(padded.ids.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return compute(names, self.model, padded, temperature)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient; losses are shares of the step's loss and add up."""
        loss.backward()

    def step(self) -> float:
        """Clip, update and forget the gradients; returns the global gradient norm before clipping.

        Raises:
            NotFinite: the norm is not finite; nothing was updated.
        """
        parameters = [p for _, p in self._named if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        found = float(norm)
        if not torch.isfinite(norm):
            raise NotFinite(f"gradient norm {found} at step {self.updates + 1}: not finite")
        if self.clip and found > self.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return found

    def collect(self, *, everywhere: bool = False) -> None:
        """Bring together what `save` writes, in the first process or in all; every process takes part."""

    def save(self, folder: Path, name: str = "model") -> dict[str, Any]:
        """Write parameters and moments to `<name>.safetensors`; returns the JSON that `restore` wants back."""
        checkpoint.write_tensors(folder / f"{name}.safetensors", self._tensors())
        return {"updates": self.updates}

    def restore(self, folder: Path, record: dict[str, Any], name: str = "model") -> None:
        """Go on from what `save` wrote, whatever was done since."""
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        if record["updates"]:  # before the first update there are no moments
            self._start_moments(int(record["updates"]))
        checkpoint.read_into(folder / f"{name}.safetensors", self._tensors())
        self.updates = int(record["updates"])

    def gather(self) -> Any:
        """The model with all its weights, in evaluation mode."""
        return self.model.eval()

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {f"parameter/{n}": p.data for n, p in self._named}
        known = set(self.model.state_dict())
        found |= {f"buffer/{n}": b for n, b in self.model.named_buffers() if n in known}
        for name, parameter in self._named:
            if state := self._optimizer.state.get(parameter):
                found |= {f"{key}/{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        return found

    def _start_moments(self, updates: int) -> None:
        for _, parameter in self._named:
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(updates), device=parameter.device),  # where the fused kernel reads it
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def trainer_for(model: Any, recipe: Optimizer, total: int, runtime: Runtime, dtype: str) -> Any:
    """`Plain`, or DeepSpeed where the runtime launches several processes: both have the same functions."""
    if runtime.launcher == "local":
        return Plain(model, recipe, total, dtype)
    from engine.zero import Zero

    return Zero(model, recipe, total, runtime, dtype)
