"""The micro campaign on models that others make: random OPT, GPT-2, Qwen2 and Llama, adopted from a folder."""

import json
from pathlib import Path

import pytest
import yaml

from configs.check import check
from configs.load import FOLDER, resolve
from flows.rounds import align
from storage import open_store
from tasks import Run

SENTENCES = (
    "the red fox runs over the green hill", "a small bird sings in the old tree", "Please tell me a story about rain.",
    "I cannot help with that, but here is something else.", "what is the name of the river?",
)  # fmt: skip
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128}
ARCHITECTURES = {
    "llama": {**SIZES, **GROUPED},
    "qwen2": {**SIZES, **GROUPED, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {**SIZES, "word_embed_proj_dim": 16, "ffn_dim": 64, "max_position_embeddings": 128, "do_layer_norm_before": True},
}  # fmt: skip


def published(folder: Path, architecture: str) -> Path:
    """A model folder with a config and a tokenizer and no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **ARCHITECTURES[architecture]
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "architecture", ["opt", *(pytest.param(a, marks=pytest.mark.slow) for a in ("gpt2", "qwen2", "llama"))]
)
def test_micro_campaign_on_a_model_of_others(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    raw["name"] = f"micro-{architecture}"
    raw["base"] = {"adopt": {"path": str(published(tmp_path / "model", architecture)), "random_init": True}}
    campaign = resolve(check(raw, "micro"))
    run = Run(campaign, open_store(tmp_path / "store"), campaign.runtime, mode="direct")
    align(run)
    table = json.loads((run.store.fetch(run.artifacts["compare"].ref) / "table.json").read_text())
    assert all(f'"{version}"' in json.dumps(table) for version in ("base", "v0", "v1", "v2"))
    weights = set()
    for label, artifact in run.versions.items():
        folder = run.store.fetch(artifact.ref)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.config.model_type == architecture and tokenizer.pad_token_id != tokenizer.eos_token_id, label
        weights.add((folder / "model.safetensors").read_bytes())
    assert len(weights) == 4  # every version moved
