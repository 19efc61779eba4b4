"""Models as Hugging Face folders: load, make, save. Safetensors only, no code from outside, dropout off unless asked for."""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig
from transformers.utils import logging

from configs.runtime import Runtime
from engine.errors import StageError
from engine.implicit import FOLDER as IMPLICIT
from engine.implicit import Implicit
from engine.template import CARD, Chat, read_tokenizer, save_card

Dtype = Literal["float32", "bfloat16"]
_DROPOUTS = ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop",
             "resid_pdrop", "summary_first_dropout", "classifier_dropout")  # fmt: skip
_ALIGNMENT = 64  # bytes, of torch's own allocations on a CPU


def load_policy(folder: Path, runtime: Runtime, dtype: Dtype = "float32", dropout: float = 0.0) -> Any:
    """A causal language model in evaluation mode on the runtime's device.

    Raises:
        StageError: no safetensors weights, or weights that do not fill the model.
    """
    return _load(AutoModelForCausalLM, folder, runtime, dtype, dropout).to(runtime.device)


def load_reward(folder: Path, runtime: Runtime, dtype: Dtype = "float32", dropout: float = 0.0) -> Any:
    """A reward model in evaluation mode; its head stays in fp32. One without a head is its two models.

    Of several outputs (a model of attributes) the first is the reward.
    """
    card = json.loads((folder / CARD).read_text()) if (folder / CARD).is_file() else {}
    if "implicit" in card:
        pair = [_load(AutoModelForCausalLM, part, runtime, dtype, dropout) for part in (folder, folder / IMPLICIT)]
        return Implicit(*pair, beta=float(card["implicit"])).eval().to(runtime.device)
    model = _load(AutoModelForSequenceClassification, folder, runtime, dtype, dropout)
    if dtype != "float32":
        model.score.weight = nn.Parameter(_read(folder, "score.weight").float())
    return model.to(runtime.device)


def critic_from_reward(folder: Path, runtime: Runtime, dtype: Dtype = "float32") -> Any:
    """A value model that begins as the reward model: the same head, read at every position."""
    return load_reward(folder, runtime, dtype)


def reward_from_policy(
    folder: Path,
    runtime: Runtime,
    seed: int,
    dtype: Dtype = "float32",
    dropout: float = 0.0,
    outputs: int = 1,
    token: str | None = None,
) -> Any:
    """A reward model on a policy's body: a new head, normal with std 1/sqrt(d + 1), no bias (METHODS 2.4).

    outputs: 1 for a reward; more for a model of attributes.
    token: instead of a new head the row of the policy's vocabulary head that gives this token's logit, so that the
        reward begins as that logit.

    Raises:
        StageError: a model without a plain score head, or a token that is not one of the vocabulary.
    """
    model = _load(
        AutoModelForSequenceClassification, folder, runtime, dtype, dropout, head="score.weight", num_labels=outputs
    )
    if not isinstance(model.score, nn.Linear) or model.score.bias is not None:
        raise StageError(f"{folder.name}: {type(model).__name__} has no plain score head; use another architecture")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(model.score.weight.shape, generator=generator) / math.sqrt(model.score.in_features + 1)
    model.score.weight = nn.Parameter(drawn if token is None else vocabulary_row(folder, runtime, token)[None])
    return model.to(runtime.device)


def vocabulary_row(folder: Path, runtime: Runtime, token: str) -> torch.Tensor:
    """The weights [D] of a policy's vocabulary head that make one token's logit."""
    ids = read_tokenizer(folder).get_vocab()
    if token not in ids:
        near = difflib.get_close_matches(token, ids, n=3)
        hint = f"; near it are {', '.join(map(repr, near))}" if near else ""
        raise StageError(f"reward.head_token {token!r} is not a token of the model's vocabulary{hint}")
    policy = load_policy(folder, runtime)
    head, width = policy.get_output_embeddings(), policy.config.hidden_size
    if head.bias is not None or head.in_features != width:
        raise StageError(f"{folder.name}: its vocabulary head reads {head.in_features} numbers, a reward head {width}")
    return head.weight[ids[token]].detach().float().cpu().clone()


def new_llama(architecture: Mapping[str, Any], chat: Chat, seed: int) -> Any:
    """A Llama with random weights from the seed, in fp32.

    Raises:
        StageError: a field that LlamaConfig does not have.
    """
    if unknown := sorted(set(architecture) - set(LlamaConfig().to_dict())):
        raise StageError(f"architecture has {', '.join(unknown)}, which a Llama config does not; see LlamaConfig")
    ids = {"bos_token_id": chat.tokenizer.bos_token_id, "eos_token_id": chat.eos_id, "pad_token_id": chat.pad_id}
    return new_model(LlamaConfig(**architecture, vocab_size=len(chat.tokenizer), **ids), seed)


def new_model(config: Any, seed: int) -> Any:
    """A causal language model of any architecture with random weights from the seed, in fp32."""
    _set_dropout(config, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def read_config(source: Path | str, revision: str | None = None) -> Any:
    """A model's config from a folder or a pinned hub revision; code from outside is never run."""
    local = isinstance(source, Path)
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, local_files_only=local)


def save_model(
    model: Any, chat: Chat, out: Path, kind: Literal["policy", "reward"], dtype: Dtype = "float32", **card: Any
) -> None:
    """Write a folder that plain Auto classes load: the same weights give the same bytes.

    dtype: of the stored weights; a reward model's head is stored in fp32.
    card: more to be known about the model.
    """
    if isinstance(model, Implicit):
        save_model(model.reference, chat, out / IMPLICIT, "policy", dtype)
        save_model(model.policy, chat, out, kind, dtype, implicit=model.beta, **card)
        return
    out.mkdir(parents=True, exist_ok=True)
    wanted = getattr(torch, dtype)
    state = {}
    for name, tensor in model.state_dict().items():
        keep = not tensor.is_floating_point() or name == "score.weight"
        state[name] = (tensor if keep else tensor.to(wanted)).detach().cpu().contiguous()
    was, model.config.dtype = model.config.dtype, wanted
    with quiet():
        model.save_pretrained(out, state_dict=state)
    model.config.dtype = was
    for name in ("config.json", "generation_config.json"):
        if (path := out / name).is_file():
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_card(chat, out, kind, **card)


def freeze(model: Any) -> Any:
    """The model as a fixed one: evaluation mode, no gradients."""
    return model.requires_grad_(False).eval()


class quiet:
    """Inside, transformers prints neither bars nor remarks; what matters is judged by us."""

    def __enter__(self) -> None:
        self._level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        logging.set_verbosity(self._level)


def _load(
    auto: Any, folder: Path, runtime: Runtime, dtype: Dtype, dropout: float, head: str | None = None, **extra: Any
) -> Any:
    if not any(folder.glob("*.safetensors")):
        raise StageError(f"{folder.name}: no .safetensors weights; other formats can run code and are not read")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **extra)
    _set_dropout(config, dropout)
    attention = {"attn_implementation": "flex_attention"} if runtime.attention == "flex" else {}
    with quiet(), torch.random.fork_rng(devices=[]):
        model, info = auto.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype), use_safetensors=True, **attention,
            trust_remote_code=False, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(set(info["missing_keys"]) - {head}):
        raise StageError(f"{folder.name}: weights {', '.join(missing[:3])} are missing ({len(missing)} in all)")
    if broken := info["mismatched_keys"]:
        raise StageError(f"{folder.name}: weights of another shape than the config says: {sorted(broken)[:3]}")
    return _aligned(model).eval()


def _aligned(model: Any) -> Any:
    """The model with every weight at an address that torch would choose.

    Weights come as views into the mapped file, at addresses that the length of its header decides; kernels may round by
    the alignment of what they read, and then a model would not compute the same before it is saved and after.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model


def _set_dropout(config: Any, share: float) -> None:
    for name in _DROPOUTS:
        if isinstance(getattr(config, name, None), float | int):
            setattr(config, name, share)
    if hasattr(config, "layerdrop"):
        config.layerdrop = 0.0


def _read(folder: Path, name: str) -> torch.Tensor:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                found: torch.Tensor = file.get_tensor(name)
                return found
    raise StageError(f"{folder.name}: no weight {name}")
