"""Parameter counts by arithmetic equal what transformers builds and what was published."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from cli.forecast import human, parameters_of
from configs.load import FOLDER

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "architecture",
    [
        {**LLAMA, "tie_word_embeddings": True},
        {**LLAMA, "tie_word_embeddings": False},
        {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
        {
            "model_type": "gpt2",
            "vocab_size": 100,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "n_positions": 64,
        },
        {
            "model_type": "opt",
            "vocab_size": 100,
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "do_layer_norm_before": False,
        },
        {
            "model_type": "opt",
            "vocab_size": 100,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ],
    ids=["llama-tied", "llama", "qwen2", "gpt2", "opt-narrow", "opt"],
)
def test_count_equals_the_models(architecture: dict[str, object]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture, **SPECIAL))
    assert parameters_of(architecture) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("config", "published"), [("llama2-70b", 68_976_648_192), ("opt-350m-rm-static", 331_196_416)])
def test_count_equals_the_published_one(config: str, published: int) -> None:
    raw = yaml.safe_load((FOLDER / f"{config}.yaml").read_text())
    assert parameters_of(raw["base"]["adopt"]["architecture"]) == published


def test_unknown_architecture_is_told() -> None:
    with pytest.raises(ValueError, match="no parameter count for model type 'rwkv'"):
        parameters_of({"model_type": "rwkv", "hidden_size": 1, "num_hidden_layers": 1, "vocab_size": 1})


@pytest.mark.parametrize(("count", "text"), [(7, "7B"), (1234, "1.2kB"), (68_976_648_192, "69.0GB")])
def test_counts_are_readable(count: int, text: str) -> None:
    assert human(count, "B") == text
