"""Low-rank adapters on a model's linear layers: little to train and to save, the frozen model is there when they are off.

The model keeps its class; peft puts its layers in the place of the linear ones. What is published has them merged in.
Source: Hu et al. 2021 (arXiv 2106.09685), equation 3: h = W x + (alpha / rank) B A x, B = 0 at the start.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from configs.recipes import Lora
from engine.errors import StageError

NAME = "default"


def add(model: Any, lora: Lora | None, seed: int) -> Any:
    """The model with fresh adapters, which alone (and a scalar head) are trained; without a recipe as it is.

    Raises:
        StageError: a model without layers of the kind that the recipe names.
    """
    if lora is None:
        return model
    from peft import LoraConfig

    names = targets(model, lora)
    turned = type(model.get_submodule(names[0])).__name__ == "Conv1D"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names, fan_in_fan_out=turned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _with(config, model)


def alike(plain: Any, model: Any) -> Any:
    """The plain model with fresh adapters of the shapes that another model of its kind has; as it is where that has none."""
    return _with(model.peft_config[NAME], plain) if layers(model) else plain


def _with(config: Any, model: Any) -> Any:
    from peft import inject_adapter_in_model

    model = inject_adapter_in_model(config, model, adapter_name=NAME)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    return model


def targets(model: Any, lora: Lora) -> list[str]:
    """The full names of the linear layers in the model's blocks that get an adapter; heads do not."""
    body = getattr(model, model.base_model_prefix)
    prefix = model.base_model_prefix
    kinds = ("Linear", "Conv1D")  # GPT-2's linear layers are called Conv1D
    names = [f"{prefix}.{name}" for name, module in body.named_modules() if type(module).__name__ in kinds]
    if lora.targets == "attention":
        names = [name for name in names if any(part.startswith(("self_attn", "attn")) for part in name.split("."))]
    if not names:
        raise StageError(f"lora.targets {lora.targets}: {type(model).__name__} has no such layer")
    return names


def layers(model: Any) -> list[tuple[str, Any]]:
    """(name, layer) of every layer with an adapter."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


@contextlib.contextmanager
def off(model: Any) -> Iterator[None]:
    """Inside, the model is what it was before it had adapters."""
    found = layers(model)
    for _, layer in found:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in found:
            layer.enable_adapters(True)


def weight_of(layer: Any) -> Tensor:
    """The weight that a linear layer multiplies by: with its adapter's part, where it has one that is on."""
    if not hasattr(layer, "lora_A"):
        return layer.weight  # type: ignore[no-any-return]
    base: Tensor = layer.get_base_layer().weight
    return base if layer.disable_adapters else base + layer.get_delta_weight(NAME)


def merged(model: Any) -> Any:
    """The plain model with every adapter added to its layer's weight. The model is changed."""
    for name, layer in layers(model):
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model
