"""What the benchmark of a GPU measures with: shapes and amounts, the device's clock and memory, random models."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig

from engine.decoders import decoder_for

EOS = 2
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048,
         "tie_word_embeddings": True}  # fmt: skip
MEDIUM = {**LARGE, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
TINY = {**LARGE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What is measured: the models' shapes, and how much of everything."""

    shape: dict[str, Any]
    shape_online: dict[str, Any]
    matrix: int  # rows and columns of the product that sets the ceiling
    prompt: int
    response: int
    rows: int  # sequences a step
    micro: int  # of them at a time
    steps: int
    prompts: int  # of the sampler's
    limit: int  # its tokens a response
    batch: int  # rollouts of a PPO iteration


FULL = Sizes(LARGE, MEDIUM, 8192, 256, 256, 64, 16, 8, 32, 256, 128)
TOY = Sizes(TINY, TINY, 128, 16, 16, 8, 4, 4, 4, 16, 16)


class Device:
    """The device's clock and memory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.name == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        if self.name == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes of tensors at most since then; 0 on a CPU, which does not count them."""
        return torch.cuda.max_memory_allocated() if self.name == "cuda" else 0


def memory(peak: int, forecast: int) -> str:
    """Peak and forecast in GB, and their ratio."""
    if peak == 0:
        return f"not measured, {forecast / 1e9:.2f}, -"
    return f"{peak / 1e9:.2f}, {forecast / 1e9:.2f}, {peak / forecast:.2f}"


def made(kind: Any, shape: dict[str, Any], device: Device, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A random model on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=EOS, num_labels=1)
    with torch.device(device.name):
        return kind.from_config(config, dtype=dtype, attn_implementation=attention).eval()


def sampled_by(model: Any) -> str:
    """The class that decodes, and how it multiplies by the weights."""
    decoder = decoder_for(model)
    layers = getattr(decoder, "layers", [])
    return type(decoder).__name__ + (f" ({type(layers[0]).__name__.lower()} layers)" if layers else "")
