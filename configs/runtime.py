"""Where and how fast. Nothing here may name a result; what can change its bytes is recorded as numerics."""

from typing import Annotated, Literal

from pydantic import Field

from configs.fields import Count, Natural, Positive, Strict

Few = Annotated[int, Field(ge=1, le=4096)]  # of what the run keeps in memory or starts at once
SERVED = ("sample", "probe")  # stages whose policy does not change while they run: another program may serve it


class Runtime(Strict):
    """One machine's or one cluster's way of running stages."""

    store: str | None = None  # URL; ROUNDHOUSE_STORE goes before it
    device: Literal["cpu", "cuda"] = "cpu"
    slots: Few = 2  # stages side by side
    threads: Few = 1  # CPU threads a stage
    train_rows: Natural = 0  # micro-batch of training in responses; 0 = the whole optimizer step
    score_rows: Count = 256
    sample_rows: Count = 256
    save_seconds: Positive = 30.0  # a save point at the first step after this long
    save_steps: Natural = 0  # a save point every so many steps; 0 = by time only
    attention: Literal["dense", "flex"] = "dense"  # masks of packed rows; flex: FlexAttention's blocks, for GPUs
    launcher: Literal["local", "deepspeed", "ray"] = "local"
    processes: Few = 1
    zero: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    sampler: Literal["builtin", "vllm"] = "builtin"  # of the stages in SERVED; the others sample by themselves
    vllm: str = (
        ".venv-vllm/bin/python"  # python of vLLM's own environment, or the URL of a server that serves the policy
    )
    vllm_devices: Few = 1  # over which one vLLM server spreads a model
    vllm_options: tuple[str, ...] = ()  # more arguments of its command line
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()  # beside TensorBoard's files, by libraries that you install
    lease_ttl: Positive = 90.0
    lease_beat: Positive = 20.0
    require_cas: bool = False
    timeout_seconds: Positive = 7 * 24 * 3600.0
    device_flops: float = Field(
        default=0.0, ge=0.0
    )  # FLOP/s that a device sustains, for `plan` where nothing is measured
    device_price: float = Field(default=0.0, ge=0.0)  # money for a device and hour, in whatever money; 0 = not known

    def numerics(self) -> dict[str, str | int]:
        """The settings under which equal names also mean equal bytes (on one CPU type)."""
        return {
            "device": self.device,
            "threads": self.threads,
            "train_rows": self.train_rows,
            "score_rows": self.score_rows,
            "sample_rows": self.sample_rows,
            "processes": self.processes,
            "zero": self.zero,
            "sampler": self.sampler,
            "attention": self.attention,
        }
