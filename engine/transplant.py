"""chat + (new base - old base), weight by weight: a chat model moved to a new base without training.

Cheap and not the real thing: what alignment did is kept as a difference of weights, which fits the new base as far as both
moved in other directions. Measured against a rebuilt chat model before it is used.
"""

from typing import Any

import torch
from torch import Tensor

from configs.continuing import Transplant
from engine.corpus import vocabulary
from engine.errors import StageError
from engine.job import Job
from engine.models import load_policy, save_model
from engine.template import load_chat


def run(job: Job) -> dict[str, Any]:
    """Write the moved chat model's folder; its template is the chat model's.

    Raises:
        StageError: another tokenizer, other weights or other shapes, or a sum that is not finite.
    """
    recipe: Transplant = job.recipe
    chat = load_chat(job.folder("chat"))
    for role in ("old_base", "new_base"):
        if (found := vocabulary(load_chat(job.folder(role)))) != (wanted := vocabulary(chat)):
            raise StageError(
                f"{role.replace('_', ' ')} has tokenizer {found[:12]}, the chat model {wanted[:12]}: their rows of the "
                "embedding mean other tokens; rebuild the chat model on the new base"
            )
    model = load_policy(job.folder("chat"), job.runtime)
    before, after = (weights(job, role) for role in ("old_base", "new_base"))
    state = weights_of(model)
    check_alike(state, before, "old base")
    check_alike(state, after, "new base")
    moved = {n: add(tensor, after[n], before[n], recipe.scale) for n, tensor in state.items()}
    if broken := [n for n, tensor in moved.items() if not bool(torch.isfinite(tensor).all())]:
        raise StageError(f"weight {broken[0]} is not finite after the change ({len(broken)} in all)")
    change = norm({n: after[n].double() - before[n].double() for n in state})
    own = norm({n: state[n].double() - before[n].double() for n in state})
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(moved[name])
    save_model(model, chat, job.out, "policy", recipe.dtype)
    job.progress(1, 1, "model")
    return {"weights": len(state), "base_change": change, "chat_change": own, "scale": recipe.scale}


def add(chat: Tensor, after: Tensor, before: Tensor, scale: float) -> Tensor:
    """The sum in fp64, rounded once: a chat model that is the old base becomes the new base to the bit."""
    return (chat.double() + scale * (after.double() - before.double())).to(chat.dtype)


def weights(job: Job, role: str) -> dict[str, Tensor]:
    """A base's weights by name, in fp32."""
    return weights_of(load_policy(job.folder(role), job.runtime))


def weights_of(model: Any) -> dict[str, Tensor]:
    """A model's weights by name; tied ones once."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def check_alike(chat: dict[str, Tensor], base: dict[str, Tensor], what: str) -> None:
    """Raise StageError unless a base has the chat model's weights, by name and shape."""
    shape = lambda state, name: list(state[name].shape) if name in state else None
    if odd := [n for n in sorted(chat.keys() | base.keys()) if shape(chat, n) != shape(base, n)]:
        raise StageError(
            f"the {what} is another architecture than the chat model: {odd[0]} is {shape(base, odd[0])} there and "
            f"{shape(chat, odd[0])} in the chat model ({len(odd)} differ); rebuild the chat model on the new base"
        )


def norm(tensors: dict[str, Tensor]) -> float:
    """The length of all weights taken as one vector."""
    return float(sum(float((t**2).sum()) for t in tensors.values()) ** 0.5)
