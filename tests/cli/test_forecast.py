"""Parameter counts by arithmetic equal what transformers builds and what was published."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.flop_truth import Truth
from cli.costs import LARGEST_COPY, Lengths, copy_bytes, human, parameters_of, sizes_of, training_bytes
from cli.forecast import steps_of
from cli.reads import steps_over
from configs.continuing import Continue
from configs.load import FOLDER
from configs.recipes import Lora, Train
from engine import folding
from engine.folding import Folded, Head
from engine.llama import LlamaDecoder, suits

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


ARCHITECTURES = pytest.mark.parametrize(
    "architecture",
    [
        {**LLAMA, "tie_word_embeddings": True},
        {**LLAMA, "tie_word_embeddings": False},
        {**LLAMA, "attention_bias": True},
        {**LLAMA, "mlp_bias": True},
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
    ids=["llama-tied", "llama", "llama-attention-bias", "llama-mlp-bias", "qwen2", "gpt2", "opt-narrow", "opt"],
)


@ARCHITECTURES
def test_count_equals_the_models(architecture: dict[str, object]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture, **SPECIAL))
    assert parameters_of(architecture) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "published"),
    [("llama2-70b", 68_976_648_192), ("llama2-7b", 6_738_415_616), ("opt-350m-rm-static", 331_196_416)],
)
def test_count_equals_the_published_one(config: str, published: int) -> None:
    raw = yaml.safe_load((FOLDER / f"{config}.yaml").read_text())
    assert parameters_of(raw["base"]["adopt"]["architecture"]) == published


UNUSUAL = [
    {**LLAMA, "hidden_act": "gelu"},
    {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    {**LLAMA, "model_type": "qwen2", "attention_bias": True},
    {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.args[1], *UNUSUAL])
def test_the_samplers_copy_is_counted(architecture: dict[str, object]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture, **SPECIAL))
    held = 0
    if suits(model):
        decoder = LlamaDecoder(model)
        copies = [layer for layer in decoder.layers if isinstance(layer, Folded)]
        matrices = [part for c in copies for part in (c.first, c.output, c.gated, c.last)]
        matrices += decoder._logits.parts if isinstance(decoder._logits, Head) else []
        held = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
    sizes = sizes_of(architecture)
    assert copy_bytes(sizes, "float32") == 2 * copy_bytes(sizes, "bfloat16") == held
    assert LARGEST_COPY == folding.LARGEST_COPY


def test_unknown_architecture_is_told() -> None:
    with pytest.raises(ValueError, match="no parameter count for model type 'rwkv'"):
        parameters_of({"model_type": "rwkv", "hidden_size": 1, "num_hidden_layers": 1, "vocab_size": 1})


@pytest.mark.parametrize(("count", "text"), [(7, "7B"), (1234, "1.2kB"), (68_976_648_192, "69.0GB")])
def test_counts_are_readable(count: int, text: str) -> None:
    assert human(count, "B") == text


@ARCHITECTURES
@pytest.mark.parametrize(
    "lora", [None, Lora(rank=3), Lora(rank=2, targets="attention")], ids=["full", "linear", "attention"]
)
def test_flops_are_those_that_torch_counts(architecture: dict[str, object], lora: Lora | None) -> None:
    if architecture["model_type"] == "opt" and lora is not None and architecture["word_embed_proj_dim"] != 32:
        pytest.skip("the adapters between OPT's narrow table and its blocks read the embeddings")
    truth, lengths = Truth(dict(architecture), lora), Lengths.fixed(20, 13)
    plain, learner = sizes_of(architecture), sizes_of(architecture, lora=lora)
    scorer = sizes_of(architecture, lora=lora, reward=True)
    assert plain.forward(lengths, 13) == truth.flops("sample", 20, 13, 1)
    assert learner.learning(lengths, 13) == pytest.approx(truth.flops("train", 20, 13, 1), rel=0.01)
    assert scorer.learning(lengths, 1) == pytest.approx(truth.flops("reward", 20, 13, 1), rel=0.01)


@ARCHITECTURES
def test_adapters_are_counted(architecture: dict[str, object]) -> None:
    truth = Truth(dict(architecture), Lora(rank=3))
    learned = sum(p.numel() for p in truth.learning["train"].parameters() if p.requires_grad)
    assert learned == sizes_of(architecture, lora=Lora(rank=3)).parameters - parameters_of(architecture)


def test_memory_of_training_is_the_published_one() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters on 64 devices take 120, 31.4, 16.6 and 1.9 GB under ZeRO-0 to 3."""
    count, found = 7_500_000_000, []
    for stage in range(4):
        held = training_bytes(count, count, "bfloat16", launcher="deepspeed", zero=stage, processes=64)
        found.append(round(held.total / 1e9, 1))
    assert found == [120.0, 31.4, 16.6, 1.9]


def test_adapters_take_little_memory() -> None:
    """4 bytes a frozen weight and 16 a trained one: 1000 frozen, 10 trained -> 4 * 1010 + 12 * 10."""
    assert training_bytes(1010, 10, "float32").total == 4160


@pytest.mark.parametrize(
    ("recipe", "rows", "steps", "seen"),
    [
        (Train(epochs=2, batch_size=4), 10, 6, 20),  # 4 + 4 + 2, twice
        (Train(epochs=1.5, batch_size=4), 10, 5, 18),  # and then 4 + 4 of them
        (Train(epochs=3, batch_size=4, max_steps=2), 10, 2, 8),
    ],
)
def test_steps_are_whole_epochs_with_their_last_partial_batch(recipe: Train, rows: int, steps: int, seen: int) -> None:
    assert steps_of(recipe, rows) == (steps, seen)


@pytest.mark.parametrize(("tokens", "steps"), [(128.0, 1), (129.0, 2), (1000.0, 8)])
def test_steps_are_as_many_as_the_epochs_of_the_new_text_take(tokens: float, steps: int) -> None:
    """4 sequences of 32 tokens are 128 a step."""
    assert steps_over(Continue(sequence_length=32, batch_size=4), tokens) == steps
