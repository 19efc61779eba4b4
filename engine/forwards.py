"""What a model says about responses, in response coordinates [B, R]: log-probs, entropies, values, rewards.

All results are fp32 whatever the weights are; logits are computed only where a response token is predicted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from engine import apart, pruned
from engine.batches import Padded
from engine.implicit import Implicit

_SCALED = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)  # heads that are no plain product
_CHUNK = 1 << 25  # logits at a time; beyond that they are computed in parts, and again in the backward pass
_READ = 512  # tokens whose logits are read at a time on a CPU, so that they stay in its cache; without gradients


def logps(model: Any, padded: Padded, temperature: float = 1.0) -> Tensor:
    """Log-probability of every response token, [B, R] fp32, 0 outside the mask.

    temperature: the one at which the response was sampled.
    """
    return _token_stats(model, padded, temperature, entropy=False)[0]


def logps_entropy(model: Any, padded: Padded, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the entropy in nats of each position's whole distribution: two [B, R] fp32."""
    found, entropy = _token_stats(model, padded, temperature, entropy=True)
    assert entropy is not None
    return found, entropy


def rewards(model: Any, padded: Padded) -> Tensor:
    """The scalar head (of several outputs the first) at the last real token, [B] fp32."""
    return attributes(model, padded)[..., 0]


def attributes(model: Any, padded: Padded) -> Tensor:
    """All outputs of the head at the last real token, [B, A] fp32; of an implicit reward its one value."""
    if isinstance(model, Implicit):
        return model.score(logps(model.policy, padded), logps(model.reference, padded)).unsqueeze(-1)
    return _score(model, _states(model, padded, padded.last))


def values(model: Any, padded: Padded) -> Tensor:
    """The scalar head at the state before each response token, [B, R] fp32, 0 outside the mask."""
    mask = padded.response_mask
    found = _score(model, _states(model, padded, padded.source[mask]))[..., 0]
    return found.new_zeros(mask.shape).masked_scatter(mask, found)


def compute(names: Sequence[str], model: Any, padded: Padded, temperature: float = 1.0) -> dict[str, Tensor]:
    """What a method's `forwards` asks of the model in training: policy_logp, policy_entropy, reward or value."""
    found: dict[str, Tensor] = {}
    if "policy_entropy" in names:
        found["policy_logp"], found["policy_entropy"] = logps_entropy(model, padded, temperature)
    elif "policy_logp" in names:
        found["policy_logp"] = logps(model, padded, temperature)
    if "reward" in names:
        found["reward"] = attributes(model, padded) if model.num_labels > 1 else rewards(model, padded)
    if "value" in names:
        found["value"] = values(model, padded)
    return found


def _states(model: Any, padded: Padded, places: Tensor) -> Tensor:
    """The body's last hidden states at `places` (indices into the flattened rows), [N, D]."""
    body = getattr(model, model.base_model_prefix)
    if padded.sizes is not None and pruned.known(body):
        return apart.states_at(body, padded, places)
    if pruned.applies(body, places.numel(), padded.ids.numel()):
        return pruned.states_at(body, padded, places)
    states: Tensor = body(**_inputs(model, padded)).last_hidden_state
    return states.flatten(0, 1)[places]


def _inputs(model: Any, padded: Padded) -> dict[str, Any]:
    """Padded rows need neither mask nor positions; packed rows bring both."""
    inputs: dict[str, Any] = {"input_ids": padded.ids, "use_cache": False}
    if padded.positions is not None:
        inputs |= {"attention_mask": pruned.mask_for(model, padded), "position_ids": padded.positions}
    return inputs


def _score(model: Any, states: Tensor) -> Tensor:
    head = model.score  # called as a module: DeepSpeed fetches a partitioned weight then
    with torch.autocast(states.device.type, enabled=False):
        found: Tensor = head(states.to(head.weight.dtype))
    return found.float()


def _token_stats(model: Any, padded: Padded, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor | None]:
    mask = padded.response_mask
    places, target = padded.source[mask], padded.target[mask]
    if any(getattr(model.config, name, None) not in (None, 1.0) for name in _SCALED):
        logits = model(**_inputs(model, padded)).logits.flatten(0, 1)[places]
        logp, spread = _read(logits, target, temperature, entropy)
    else:
        states, head = _states(model, padded, places), model.get_output_embeddings()
        is_cut = hasattr(head.weight, "ds_id")  # by ZeRO-3, for which processes must call it equally often
        rows = max(1, _CHUNK // max(1, head.weight.shape[0]))
        if states.device.type == "cpu" and not torch.is_grad_enabled():
            rows = min(rows, _READ)
        if len(places) <= rows or is_cut:
            logp, spread = _read(head(states), target, temperature, entropy)
        else:
            part = lambda s, t: _read(head(s), t, temperature, entropy)
            parts = [
                checkpoint(part, s, t, use_reentrant=False, preserve_rng_state=False)
                for s, t in zip(states.split(rows), target.split(rows))
            ]
            logp = torch.cat([p[0] for p in parts])
            spread = torch.cat([p[1] for p in parts]) if entropy else None
    wide = logp.new_zeros(mask.shape)
    return wide.masked_scatter(mask, logp), None if spread is None else wide.masked_scatter(mask, spread)


def _read(logits: Tensor, target: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """logits [N, V], target [N] -> log-probs [N] fp32 and entropies [N] fp32."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if not entropy:
        return -functional.cross_entropy(logits, target, reduction="none"), None
    every = functional.log_softmax(logits, -1)
    return every.gather(1, target[:, None])[:, 0], -(every.exp() * every).sum(-1)
