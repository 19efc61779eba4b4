"""What a stage will take, by arithmetic from the architecture: parameters, tokens at most, memory at least, bytes stored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.load import locate
from configs.recipes import Adopt, Annotate, Evaluate, Online, Pretrain, Probe, Reward, Sample, Train
from configs.runtime import Runtime
from tasks import Artifact

Architecture = Mapping[str, Any]  # a Hugging Face config's numbers
ADAM_BYTES = {
    "float32": 16,
    "bfloat16": 18,
}  # a parameter's weight, gradient and fp32 AdamW state (and fp32 master copy)
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Forecast:
    """memory: bytes a device for weights, gradients and optimizer state, activations not counted; stored: bytes kept."""

    parameters: int
    tokens: int | None
    memory: int
    stored: int


def parameters_of(a: Architecture) -> int:
    """Parameters of a causal LM, from its config's numbers.

    Raises:
        ValueError: a model type whose formula is not here.
    """
    kind, d, layers = a.get("model_type", "llama"), int(a["hidden_size"]), int(a["num_hidden_layers"])
    vocab = int(a["vocab_size"])
    if kind in ("llama", "mistral", "qwen2"):
        heads = int(a["num_attention_heads"])
        head = int(a.get("head_dim") or d // heads)
        kv = int(a.get("num_key_value_heads") or heads)
        biases = (heads + 2 * kv) * head if kind == "qwen2" else 0
        block = 2 * d * heads * head + 2 * d * kv * head + 3 * d * int(a["intermediate_size"]) + 2 * d + biases
        tables = 1 if a.get("tie_word_embeddings", False) else 2
        return tables * vocab * d + layers * block + d
    if kind == "opt":
        ffn, narrow = int(a["ffn_dim"]), int(a.get("word_embed_proj_dim") or d)
        block = 4 * (d * d + d) + 2 * d * ffn + ffn + d + 4 * d
        projections = 2 * d * narrow if narrow != d else 0
        final = 2 * d if a.get("do_layer_norm_before", True) else 0
        return vocab * narrow + (int(a["max_position_embeddings"]) + 2) * d + projections + layers * block + final
    if kind == "gpt2":
        return (
            vocab * d
            + int(a.get("n_positions") or a["max_position_embeddings"]) * d
            + layers * (12 * d * d + 13 * d)
            + 2 * d
        )
    raise ValueError(f"no parameter count for model type {kind!r}; known: llama, mistral, qwen2, opt, gpt2")


def architecture_of(artifact: Artifact) -> Architecture | None:
    """The architecture that a stage works on: that of the base its models come from."""
    recipe = artifact.stage.recipe
    if isinstance(recipe, Pretrain):
        return {"model_type": "llama", "vocab_size": recipe.tokenizer.vocab_size, **recipe.architecture}
    if isinstance(recipe, Adopt):
        if recipe.architecture or recipe.path is None:
            return recipe.architecture or None
        config: dict[str, Any] = json.loads((locate(recipe.path) / "config.json").read_text())
        return config
    for upstream in artifact.upstream:
        if (found := architecture_of(upstream)) is not None:
            return found
    return None


def forecast(artifact: Artifact, runtime: Runtime) -> Forecast | None:
    """The stage's forecast; None for stages without a model."""
    recipe, architecture = artifact.stage.recipe, architecture_of(artifact)
    if architecture is None:
        return None
    count = parameters_of(architecture)
    dtype = getattr(recipe, "dtype", "float32")
    weights, trained = count * WEIGHT_BYTES[dtype], count * ADAM_BYTES[dtype]
    if isinstance(recipe, Pretrain):
        return Forecast(
            count,
            recipe.steps * recipe.batch_size * recipe.sequence_length,
            _sharded(trained, weights, runtime),
            weights,
        )
    if isinstance(recipe, Train | Reward):
        return Forecast(count, None, _sharded(trained, weights, runtime), weights)
    if isinstance(recipe, Online):
        rows = recipe.iterations * recipe.batch_size
        tokens = rows * (recipe.limits.prompt_tokens + recipe.limits.response_tokens)
        frozen = 1 + sum(upstream.stage.work == "reward" for upstream in artifact.upstream)
        return Forecast(count, tokens, 2 * _sharded(trained, weights, runtime) + frozen * weights, weights)
    if isinstance(recipe, Sample | Annotate | Evaluate | Probe):
        per_prompt = recipe.k if isinstance(recipe, Sample | Probe) else 2 if isinstance(recipe, Annotate) else 1
        temperatures = len(recipe.temperatures) if isinstance(recipe, Probe) else 1
        tokens = recipe.prompts * per_prompt * temperatures * recipe.limits.response_tokens
        return Forecast(count, tokens, weights, tokens * 4)
    return Forecast(count, None, weights, weights if artifact.stage.kind == "model" else 0)


def _sharded(trained: int, weights: int, runtime: Runtime) -> int:
    """Bytes a device of a model in training, under the runtime's ZeRO stage (Rajbhandari et al. 2020, section 5)."""
    n, gradients = runtime.processes, weights
    rest = trained - weights - gradients
    return {
        0: trained,
        1: weights + gradients + rest // n,
        2: weights + (gradients + rest) // n,
        3: trained // n,
    }[runtime.zero]


def human(count: float, unit: str = "") -> str:
    """1234567 -> 1.2M."""
    for suffix in ("", "k", "M", "G", "T"):
        if abs(count) < 1000 or suffix == "T":
            return f"{count:.0f}{suffix}{unit}" if suffix == "" else f"{count:.1f}{suffix}{unit}"
        count /= 1000
    raise AssertionError
