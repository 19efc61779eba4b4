"""Models and tokenizers small enough for tests, made on the spot."""

from typing import Any

ARCHITECTURES = ("llama", "gpt2", "opt", "qwen2")
_SENTENCES = (
    "the red fox runs over the green hill", "a small bird sings in the old tree", "Please tell me a story about rain.",
    "I cannot help with that, but here is something else.", "what is the name of the river?",
    "Once upon a time, there was a girl.",
)  # fmt: skip


def train_tokenizer(size: int = 320) -> Any:
    """A small byte-level BPE with <pad> <s> </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(_SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_config(architecture: str, vocab: int) -> Any:
    """A config of one of the four architectures, two layers, 32 wide, with grouped queries where there are such."""
    from transformers import GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

    ids = {"vocab_size": vocab, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    if architecture == "llama":
        return LlamaConfig(**llama, **ids)
    if architecture == "qwen2":
        return Qwen2Config(**llama, **ids, tie_word_embeddings=True)
    if architecture == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ids)
    return OPTConfig(hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                     max_position_embeddings=128, do_layer_norm_before=True, **ids)  # fmt: skip
