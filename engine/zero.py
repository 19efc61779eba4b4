"""The loops' four functions over several processes: DeepSpeed ZeRO-0/1/2/3, with bf16 and CPU offload.

Every process holds the whole plan and takes its share of each step's micro-batches. Save points are gathered to full fp32
tensors by parameter name, as `sharding.Plain` writes them: a run goes on under any number of processes and any ZeRO stage.
"""

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.recipes import Optimizer
from configs.runtime import Runtime
from engine import checkpoint, partition, pruned
from engine.batches import Padded
from engine.errors import NotFinite
from engine.forwards import compute
from engine.sharding import Schedule, decayed


class Forward(nn.Module):
    """A model whose forward pass is `forwards.compute`, so that DeepSpeed's hooks see it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, names: tuple[str, ...], padded: Padded, temperature: float) -> dict[str, Tensor]:
        """What the method asks for."""
        return compute(names, self.model, padded, temperature)


class WorkerDone(BaseException):
    """This process is not the first and has done its part of the stage."""


class Zero:
    """A model and its AdamW, partitioned by DeepSpeed over the processes that torch.distributed knows."""

    def __init__(self, model: Any, recipe: Optimizer, total: int, runtime: Runtime, dtype: str) -> None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # used in no training; compiling it takes 100 s
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # its lines go to stdout, which is ours
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # by it, each step
        if not dist.is_initialized():
            dist.init_process_group("nccl" if runtime.device == "cuda" else "gloo")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.model, self.updates = model, 0
        self.schedule = Schedule(recipe, total)
        heavy, light = decayed(model)
        self._named = [*heavy, *light]
        self._buffers = {n: b for n, b in model.named_buffers() if n in model.state_dict()}
        groups = [
            {"params": [p for _, p in heavy], "weight_decay": recipe.weight_decay},
            {"params": [p for _, p in light], "weight_decay": 0.0},
        ]
        arguments = {"lr": recipe.learning_rate, "betas": recipe.betas, "eps": recipe.eps}
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], **arguments)
        size, trained = sum(p.numel() for p in model.parameters()), sum(p.numel() for _, p in self._named)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=Forward(model),
            optimizer=optimizer,
            dist_init_required=False,
            config=_config(recipe, runtime, dtype, size, trained),
        )
        if runtime.zero >= 2:
            pruned.keep_to_one_path(model)
        self._gathered: dict[str, Tensor] = {}
        self._copy: Any = None  # of a model that is partitioned
        self._clip, self._norm = recipe.clip, 0.0
        self._pending = False  # gradients that no step has used
        self._engine.clip_fp32_gradients = self._clip_plain  # ZeRO-0 in fp32 would not tell its norm
        self._start_moments()

    @property
    def main(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0

    @property
    def rate(self) -> float:
        """Learning rate of the coming step."""
        return self.schedule.rate(self.updates + 1)

    def begin(self, seed: int, step: int) -> None:
        """Give this process its own random numbers for the step, whatever happened before."""
        name = hashlib.sha256(f"{seed}:{step}:{self.rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(name[:7], "little"))

    def share(self, count: int) -> list[tuple[int, bool]]:
        """Which of a step's micro-batches this process computes: (index, counts). All processes compute as many;
        one that has none left repeats the first without counting it."""
        turns = -(-count // self.world)
        mine = [turn * self.world + self.rank for turn in range(turns)]
        return [(i, True) if i < count else (0, False) for i in mine]

    def everyone(self, value: Any) -> list[Any]:
        """What each process has found, in the order of the processes."""
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, value)
        return every

    @property
    def reader(self) -> Any:
        """The model with all its weights, for reading and sampling; under ZeRO-3 a copy that each process has."""
        if not self._is_cut:
            return self.model
        if self._copy is None:
            dtype = next(self.model.parameters()).dtype
            self._copy = partition.whole(self.model, dtype).to(self._engine.device).eval()
            partition.fill(self._copy, self.model)
        return self._copy

    def refresh(self) -> None:
        """Give `reader` the present weights; every process takes part."""
        if self._copy is not None:
            partition.fill(self._copy, self.model, only=[n for n, _ in self._named])

    def forward(self, names: tuple[str, ...], padded: Padded, temperature: float = 1.0) -> dict[str, Tensor]:
        """What a method's `forwards` asks of the model."""
        found: dict[str, Tensor] = self._engine(names, padded, temperature)
        return found

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient. Gradients are averaged over processes, so shares of a sum are multiplied first."""
        self._engine.backward(loss * self.world, scale_wrt_gas=False)
        self._pending = True

    def step(self) -> float:
        """Average over processes, clip, update; returns the global gradient norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._engine.step()
        self._pending = False
        found = self._engine.get_global_grad_norm()
        norm = self._norm if found is None else float(found)
        self.updates += 1
        if norm != norm or norm in (float("inf"), -1.0):
            raise NotFinite(f"gradient norm {norm} at step {self.updates}: not finite")
        return norm

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        value = value.clone()
        dist.all_reduce(value)
        return value

    def merge(self, metrics: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Metrics (sum, count) of all processes as one."""
        every = self.everyone(metrics)
        names = [name for one in every for name in one]
        return {
            name: tuple(sum(one[name][i] for one in every if name in one) for i in (0, 1))
            for name in dict.fromkeys(names)
        }  # type: ignore[misc]

    def agree(self, flag: bool) -> bool:
        """What the first process says, everywhere."""
        said = [flag]
        dist.broadcast_object_list(said, src=0)
        return bool(said[0])

    def collect(self, *, everywhere: bool = False) -> None:
        """Gather parameters and moments; every process takes part, the first one (or each) keeps them."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._named:
            for key in (partition.VALUE, *(partition.MOMENTS if self.updates else ())):
                one = partition.read(parameter, key, self._optimizer)
                if self.main or everywhere:
                    found[f"{key}/{name}"] = one.detach().float().cpu().clone()
        found |= {f"buffer/{n}": b for n, b in self._buffers.items()}
        self._gathered = found

    def save(self, folder: Path, name: str = "model") -> dict[str, Any]:
        """Write what `collect` gathered."""
        checkpoint.write_tensors(folder / f"{name}.safetensors", self._gathered)
        return {"updates": self.updates}

    def restore(self, folder: Path, record: dict[str, Any], name: str = "model") -> None:
        """Go on from what `save` wrote here or in any other layout."""
        if self._pending:  # DeepSpeed forgets gradients in a step only; what that does to the weights is overwritten
            self._engine.step()
            self._pending = False
        self.updates = int(record["updates"])
        stored = checkpoint.read_tensors(folder / f"{name}.safetensors")
        for state in self._base().state.values():
            state["step"].fill_(float(self.updates))
        for n, parameter in self._named:
            value = stored[f"{partition.VALUE}/{n}"]
            partition.write(parameter, partition.VALUE, value, self._optimizer)
            for key in partition.MOMENTS:  # before the first update there are none
                moment = stored.get(f"{key}/{n}", torch.zeros_like(value))
                partition.write(parameter, key, moment, self._optimizer)
        if hasattr(self._optimizer, "update_lp_params"):
            self._optimizer.update_lp_params()  # the working copies of the weights, from the fp32 ones

    def gather(self) -> Any:
        """A plain model with all weights in fp32, in the first process; the others end here.

        Raises:
            WorkerDone: in every process but the first.
        """
        self.collect()
        made = partition.whole(self.model, torch.float32) if self.main else None
        frozen = [n for n, p in self.model.named_parameters() if not p.requires_grad]
        partition.fill(made, self.model, only=frozen)
        dist.barrier()
        if made is None:
            raise WorkerDone
        with torch.no_grad():
            for n, parameter in made.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self._gathered[f"{partition.VALUE}/{n}"])
        return made.to(self._engine.device).eval()

    @property
    def _is_cut(self) -> bool:
        return any(hasattr(p, "ds_id") for _, p in self._named)

    def _clip_plain(self) -> None:
        """Clip as `sharding.Plain` does and keep the norm."""
        parameters = [p for _, p in self._named if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._norm = float(norm)
        if self._clip and self._norm > self._clip:
            nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)

    def _start_moments(self) -> None:
        """Zero moments before the first step. DeepSpeed links a parameter to its moments when the first group has been
        stepped, and would miss those of the second, which torch makes later."""
        groups = [flat for group in self._base().param_groups for flat in group["params"]]
        for flat in getattr(self._optimizer, "fp32_partitioned_groups_flat", groups):
            moments = {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
            self._base().state[flat] = {"step": torch.tensor(0.0), **moments}
        if hasattr(self._optimizer, "_lazy_init_hp_params_optimizer_state"):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _base(self) -> torch.optim.Optimizer:
        """The AdamW inside DeepSpeed's optimizer."""
        found: torch.optim.Optimizer = getattr(self._optimizer, "optimizer", self._optimizer)
        return found


def _config(recipe: Optimizer, runtime: Runtime, dtype: str, size: int, trained: int) -> dict[str, Any]:
    """DeepSpeed's settings. Gradients are reduced once a step, when it is known that no micro-batch follows.

    size, trained: parameters of the model, and those that learn. A bucket for gradients is allocated whole, and filled where
    algorithms are deterministic. ZeRO-3 keeps small parameters whole: of a small model they must not be all.
    """
    bucket, kept = min(500_000_000, trained), min(100_000, size // 1000)
    # without ZeRO bfloat16 has an optimizer whose fp32 state DeepSpeed does not show, and which decays weights once too often
    stage = runtime.zero or int(dtype == "bfloat16")
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": bucket,
                            "stage3_param_persistence_threshold": kept}  # fmt: skip
    if runtime.offload and stage:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": recipe.clip or (1e30 if stage == 0 else 0.0),  # ZeRO-0 asks for the norm only if it clips
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW where the moments lie, so that rounding does not depend on it
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
