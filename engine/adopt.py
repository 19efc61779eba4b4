"""An existing Hugging Face model -> a base model of a campaign: safetensors, pad and EOS made sure of, one template."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from configs.load import locate
from configs.recipes import Adopt
from engine.errors import StageError
from engine.job import Job
from engine.models import new_model, quiet, read_config, save_model
from engine.template import Chat, make_chat

PAD = "<|pad|>"  # added where a tokenizer has nothing to pad with


def run(job: Job) -> dict[str, Any]:
    """Check the model and write it as every later stage expects it.

    Raises:
        StageError: weights that are not safetensors, code that would have to be trusted, a tokenizer without EOS, a pad token
            that the tokenizer does not have, or an architecture other than the config says.
    """
    recipe: Adopt = job.recipe
    if recipe.trust_remote_code:
        raise StageError("base.adopt.trust_remote_code: code from a model repository is never run; use another model")
    source = locate(recipe.path) if recipe.path else str(recipe.hub)
    config = read_config(source, recipe.revision)
    for name, value in recipe.architecture.items():
        if getattr(config, name, value) != value:
            raise StageError(f"base.adopt.architecture says {name} {value}, the model has {getattr(config, name)}")
    tokenizer = read_any_tokenizer(source, recipe.revision)
    choose_pad(tokenizer, recipe.pad_token)
    chat = make_chat(tokenizer, recipe.template)
    model = new_model(config, recipe.seed) if recipe.random_init else _weights(source, recipe, config)
    added = fit_vocabulary(model, chat)
    for held in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(held, name, getattr(tokenizer, name))
    _check(model, chat)
    save_model(model, chat, job.out, "policy", recipe.dtype)
    job.progress(1, 1, "model")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "added_rows": added,
        "pad_token": str(tokenizer.pad_token),
        "eos_token": str(tokenizer.eos_token),
        "architecture": str(config.model_type),
    }


def read_any_tokenizer(source: Path | str, revision: str | None) -> Any:
    """What tokenizer.json says, else what transformers makes of older files; code from outside is never run."""
    local = isinstance(source, Path)
    given = {"revision": revision, "trust_remote_code": False, "local_files_only": local}
    with quiet():
        for kind in (PreTrainedTokenizerFast, AutoTokenizer):
            try:
                return kind.from_pretrained(source, **given)
            except (OSError, ValueError, TypeError) as error:
                said = str(error).splitlines()[0]
    raise StageError(f"{source}: no tokenizer that can be read: {said}")


def choose_pad(tokenizer: Any, wanted: str | None) -> None:
    """Make sure of a pad token that is not EOS: the wanted one, the tokenizer's own, its unknown token, or a new one.

    Raises:
        StageError: the wanted token is not in the vocabulary or is the EOS token.
    """
    if wanted is not None:
        if wanted not in tokenizer.get_vocab():
            raise StageError(f"base.adopt.pad_token {wanted!r} is not in the tokenizer's vocabulary; name one that is")
        tokenizer.pad_token = wanted
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = tokenizer.unk_token
        if spare is not None and spare not in (tokenizer.eos_token, tokenizer.bos_token):
            tokenizer.pad_token = spare
        else:
            tokenizer.add_special_tokens({"pad_token": PAD})


def fit_vocabulary(model: Any, chat: Chat) -> int:
    """Give every token id a row of the embedding; returns how many rows were added (each the mean of the others)."""
    embedding = model.get_input_embeddings().weight
    missing = len(chat.tokenizer) - embedding.shape[0]
    if missing <= 0:
        return 0
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(len(chat.tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[-missing:] = layer.weight[:-missing].mean(0)
    return missing


def _weights(source: Path | str, recipe: Adopt, config: Any) -> Any:
    if isinstance(source, Path) and not any(source.glob("*.safetensors")):
        raise StageError(f"{source.name}: no .safetensors weights; other formats can run code and are not read")
    with quiet(), torch.random.fork_rng(devices=[]):
        model, info = AutoModelForCausalLM.from_pretrained(
            source, revision=recipe.revision, config=config, dtype=torch.float32, attn_implementation="sdpa",
            use_safetensors=True, trust_remote_code=False, local_files_only=isinstance(source, Path),
            output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise StageError(f"{source}: weights {', '.join(missing[:3])} are missing ({len(missing)} in all)")
    return model.eval()


def _check(model: Any, chat: Chat) -> None:
    """One forward pass: weights are finite, and a prompt fits."""
    ids = torch.tensor([chat.prompt_ids([{"role": "user", "content": "Hello"}])])
    with torch.inference_mode():
        if not bool(torch.isfinite(model(input_ids=ids).logits).all()):
            raise StageError("the model's logits are not finite; its weights hold NaN or infinity")
