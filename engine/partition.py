"""A parameter that DeepSpeed may hold in parts: its fp32 value and moments, whole; and whole copies of such a model."""

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine import adapters

VALUE, MOMENTS = "parameter", ("exp_avg", "exp_avg_sq")  # what save points hold of each trained parameter


def read(parameter: nn.Parameter, key: str, optimizer: Any) -> Tensor:
    """The whole fp32 tensor `key` of a trained parameter; every process takes part."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not (_is_cut(parameter) or hasattr(parameter, "_hp_mapping")):
        return parameter if key == VALUE else optimizer.state[parameter][key]
    found = safe_get_full_fp32_param(parameter) if key == VALUE else safe_get_full_optimizer_state(parameter, key)
    assert found is not None, "DeepSpeed holds no such state"
    return found


def write(parameter: nn.Parameter, key: str, value: Tensor, optimizer: Any) -> None:
    """Set what `read` reads; each process keeps its part."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if _is_cut(parameter):  # DeepSpeed's own setter takes divisible sizes only
        own = _own_part(parameter, value)
        if key == VALUE:
            safe_set_local_fp32_param(parameter, own)
            parameter.ds_tensor.data.copy_(own)  # the working copy of the weights
        else:
            safe_set_local_optimizer_state(parameter, own, key)
    elif hasattr(parameter, "_hp_mapping"):
        if key == VALUE:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
    else:
        read(parameter, key, optimizer).data.copy_(value)


def whole(model: Any, dtype: torch.dtype) -> Any:
    """A model of the same kind that is not partitioned, with adapters where the model has them; its weights are still to
    be filled."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    kind = AutoModelForSequenceClassification if hasattr(model, "score") else AutoModelForCausalLM
    attention = model.config._attn_implementation
    with no_init_weights():  # drawing them takes a minute for a billion
        plain = kind.from_config(model.config, dtype=dtype, attn_implementation=attention)
    plain.tie_weights()  # which comes with drawing
    return adapters.alike(plain, model)


def fill(copy: Any | None, model: Any, only: Collection[str] | None = None) -> None:
    """Copy the model's present weights (those named, if any are) into a process's `whole` copy, where it has one; every
    process takes part."""
    from deepspeed.runtime.zero import GatheredParameters

    places = {} if copy is None else dict(copy.named_parameters())
    with torch.no_grad():
        for name, own in model.named_parameters():
            if only is None or name in only:
                with GatheredParameters([own]):
                    if places:
                        places[name].copy_(own)


def _is_cut(parameter: nn.Parameter) -> bool:
    """By ZeRO-3."""
    return hasattr(parameter, "ds_id")


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, as ZeRO-3 cuts it: equal parts, the last one filled up with zeros."""
    from deepspeed.utils import safe_get_local_fp32_param

    size = safe_get_local_fp32_param(parameter).numel()
    padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    return padded[size * dist.get_rank() : size * (dist.get_rank() + 1)]
