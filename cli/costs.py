"""What a transformer costs, by arithmetic from a Hugging Face config's numbers: parameters, FLOPs, bytes.

FLOPs are those of the tokens themselves: 2 for each weight of a matrix and token, 4 for each token, key and channel of an
attention (causal or not), 2 for each weight of the output layer where a token is predicted; training is three times the forward
pass. What padding adds and shared prompts save is left out, so that the number belongs to the work and not to the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from configs.recipes import Lora

Architecture = Mapping[str, Any]  # a Hugging Face config's numbers
LLAMAS = ("llama", "mistral", "qwen2")
LARGEST_COPY = 400_000_000  # as in engine/folding.py, which imports torch; a test holds them together


@dataclass(frozen=True)
class Lengths:
    """Of sequences, each a prompt and a response: mean tokens of both, and the mean square of their sum."""

    prompt: float
    response: float
    square: float

    @property
    def tokens(self) -> float:
        """Mean tokens of a sequence."""
        return self.prompt + self.response

    @classmethod
    def fixed(cls, prompt: float, response: float) -> Lengths:
        """All sequences alike."""
        return cls(prompt, response, (prompt + response) ** 2)


@dataclass(frozen=True)
class Sizes:
    """A model in numbers. channels: of all layers' queries together; head: weights of the output layer."""

    parameters: int
    matrices: int
    channels: int
    head: int
    layers: int
    hidden: int
    keys: int  # channels of all layers' keys and values together
    frozen: int = 0  # of the matrices, where adapters alone learn ..
    reading: int = 0  # .. and of these, what reads the embeddings and passes no gradient on
    folds: bool = False  # the built-in sampler multiplies by a copy of it

    def learning(self, lengths: Lengths, outputs: float) -> float:
        """FLOPs of one sequence's forward and backward pass: three times the forward pass where every weight learns. Frozen
        matrices need no gradient of their own, and those that read the embeddings not even one of their input."""
        if not self.frozen:
            return 3 * self.forward(lengths, outputs)
        adapters = self.matrices - self.frozen
        body = (2 * 2 * self.frozen - 2 * self.reading + 3 * 2 * adapters) * lengths.tokens
        heads = 2 if self.head > self.hidden else 3  # a scalar head learns, a vocabulary's does not
        return body + 3 * 4 * self.channels * lengths.square + heads * 2 * self.head * outputs

    def forward(self, lengths: Lengths, outputs: float) -> float:
        """FLOPs of one sequence of which `outputs` tokens are predicted."""
        return 2 * self.matrices * lengths.tokens + 4 * self.channels * lengths.square + 2 * self.head * outputs


def rolling(policy: Sizes, plain: Sizes, critic: Sizes | None, scorers: int, lengths: Lengths) -> float:
    """FLOPs of sampling one rollout and reading it: policy, reference (which has no adapters), critic and reward models."""
    own = 2 * policy.forward(lengths, lengths.response) + plain.forward(lengths, lengths.response)
    value = 0.0 if critic is None else critic.forward(lengths, lengths.response)
    return own + value + scorers * replace(plain, head=plain.hidden).forward(lengths, 1)


def linears(a: Architecture) -> list[tuple[int, int, bool]]:
    """(inputs, outputs, whether it is part of the attention) of a block's matrices.

    Raises:
        ValueError: a model type whose blocks are not known here.
    """
    kind, d = a.get("model_type", "llama"), int(a["hidden_size"])
    if kind in LLAMAS:
        heads = int(a["num_attention_heads"])
        width = int(a.get("head_dim") or d // heads)
        kv = int(a.get("num_key_value_heads") or heads) * width
        ffn = int(a["intermediate_size"])
        return [(d, heads * width, True), (d, kv, True), (d, kv, True), (heads * width, d, True),
                (d, ffn, False), (d, ffn, False), (ffn, d, False)]  # fmt: skip
    if kind == "opt":
        return [(d, d, True)] * 4 + [(d, int(a["ffn_dim"]), False), (int(a["ffn_dim"]), d, False)]
    if kind == "gpt2":
        return [(d, 3 * d, True), (d, d, True), (d, 4 * d, False), (4 * d, d, False)]
    raise ValueError(f"no parameter count for model type {kind!r}; known: {', '.join(LLAMAS)}, opt, gpt2")


def parameters_of(a: Architecture) -> int:
    """Parameters of a causal LM.

    Raises:
        ValueError: a model type whose formula is not here.
    """
    kind, d, layers, vocab = _shape(a)
    block = sum(i * o for i, o, _ in linears(a))
    if kind in LLAMAS:
        learned = 3 if kind == "qwen2" else 4 * bool(a.get("attention_bias"))
        biases = sum(o for _, o, _ in linears(a)[:learned])
        biases += sum(o for _, o, _ in linears(a)[4:]) if a.get("mlp_bias") else 0
        tables = 1 if a.get("tie_word_embeddings", False) else 2
        return tables * vocab * d + layers * (block + 2 * d + biases) + d
    if kind == "opt":
        narrow = int(a.get("word_embed_proj_dim") or d)
        final = 2 * d if a.get("do_layer_norm_before", True) else 0
        tables = vocab * narrow + (int(a["max_position_embeddings"]) + 2) * d
        return tables + _projections(a) + layers * (block + 5 * d + int(a["ffn_dim"]) + 4 * d) + final
    positions = int(a.get("n_positions") or a["max_position_embeddings"])
    return (vocab + positions) * d + layers * (block + 13 * d) + 2 * d


def sizes_of(a: Architecture, *, reward: bool = False, lora: Lora | None = None) -> Sizes:
    """The model in numbers; with one output instead of a vocabulary as a reward model or critic, with adapters under lora."""
    kind, d, layers, vocab = _shape(a)
    heads = int(a["num_attention_heads"])
    width = int(a.get("head_dim") or d // heads) if kind in LLAMAS else d // heads
    kv = int(a.get("num_key_value_heads") or heads) if kind in LLAMAS else heads
    narrow = int(a.get("word_embed_proj_dim") or d) if kind == "opt" else d
    block = linears(a)
    matrices = layers * sum(i * o for i, o, _ in block) + _projections(a)
    extra = adapters_of(a, lora)
    whole = parameters_of(a) + extra
    if reward:
        whole += narrow - (0 if a.get("tie_word_embeddings", kind not in LLAMAS) else vocab * d)
    first = sum(i * o for i, o, _ in block[: 1 if kind == "gpt2" else 3])
    return Sizes(
        parameters=whole,
        matrices=matrices + extra,
        channels=layers * heads * width,
        head=narrow if reward else vocab * narrow,
        layers=layers,
        hidden=d,
        keys=layers * 2 * kv * width,
        frozen=matrices if lora else 0,
        reading=first if lora else 0,
        folds=_folds(a),
    )


def _folds(a: Architecture) -> bool:
    """Whether engine/llama.py knows the model and engine/folding.py copies it."""
    kind, rope = a.get("model_type", "llama"), a.get("rope_parameters") or a.get("rope_scaling") or {}
    late = kind == "llama" and (a.get("attention_bias") or a.get("mlp_bias"))  # biases that the copy does not hold
    return (
        kind in ("llama", "qwen2")
        and not late
        and not a.get("use_sliding_window")
        and rope.get("rope_type", rope.get("type", "default")) in ("default", "linear", "llama3")
        and a.get("hidden_act", "silu") in ("silu", "swish")
        and parameters_of(a) <= LARGEST_COPY
    )


def adapters_of(a: Architecture, lora: Lora | None) -> int:
    """Weights of the low-rank adapters: rank times inputs and outputs of every layer that gets one."""
    if lora is None:
        return 0
    chosen = [(i, o) for i, o, attention in linears(a) if attention or lora.targets == "linear"]
    kind, d, layers, _ = _shape(a)
    count = layers * sum(i + o for i, o in chosen)
    narrow = int(a.get("word_embed_proj_dim") or d)
    if kind == "opt" and narrow != d and lora.targets == "linear":
        count += 2 * (narrow + d)
    return lora.rank * count


def _projections(a: Architecture) -> int:
    """OPT's matrices between a narrow table and the blocks."""
    d = int(a["hidden_size"])
    narrow = int(a.get("word_embed_proj_dim") or d)
    return 2 * d * narrow if a.get("model_type") == "opt" and narrow != d else 0


def _shape(a: Architecture) -> tuple[str, int, int, int]:
    return (
        str(a.get("model_type", "llama")),
        int(a["hidden_size"]),
        int(a["num_hidden_layers"]),
        int(a["vocab_size"]),
    )


@dataclass(frozen=True)
class Held:
    """Bytes of weights, gradients and optimizer state on a device."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> int:
        """All of it."""
        return round(self.weights + self.gradients + self.optimizer)


def training_bytes(
    parameters: int, trained: int, dtype: str, *, launcher: str = "local", zero: int = 0, processes: int = 1
) -> Held:
    """Bytes a device of a model in training with AdamW.

    One process keeps weights, gradients and both moments in fp32 (16 bytes a trained weight, 4 a frozen one); under bfloat16
    autocast a copy of the weights comes on top while a step runs. DeepSpeed in bfloat16 keeps weights and gradients in 2
    bytes and a master copy with both moments in 12, divided over the processes by its stage (Rajbhandari et al. 2020, table 1).
    """
    if launcher == "local" or dtype == "float32":
        copy = 2 if dtype == "bfloat16" else 0
        weights, gradients, optimizer = (4 + copy) * parameters, 4 * trained, 8 * trained
    else:
        weights, gradients, optimizer = 2 * parameters, 2 * trained, 12 * trained
    return Held(
        weights / (processes if zero >= 3 else 1),
        gradients / (processes if zero >= 2 else 1),
        optimizer / (processes if zero >= 1 else 1),
    )


def activation_bytes(sizes: Sizes, rows: float, lengths: Lengths, outputs: float, dtype: str) -> int:
    """Bytes that the forward pass of `rows` sequences keeps for the backward pass, without recomputation.

    17 numbers a token, layer and channel (Korthikanti et al. 2022, equation 2, with fused attention), and the logits in fp32
    with their gradient.
    """
    number = 2 if dtype == "bfloat16" else 4
    vocabulary = sizes.head / max(1, sizes.hidden)
    return round(rows * (17 * number * sizes.layers * sizes.hidden * lengths.tokens + 2 * 4 * vocabulary * outputs))


def cache_bytes(sizes: Sizes, rows: float, lengths: Lengths, dtype: str) -> int:
    """Bytes of keys and values of `rows` responses in flight."""
    return round(rows * lengths.tokens * sizes.keys * (2 if dtype == "bfloat16" else 4))


def copy_bytes(sizes: Sizes, dtype: str) -> int:
    """Bytes of the copy by which the built-in sampler multiplies (engine/folding.py); 0 where the model is sampled without.

    All matrices, those of queries and keys twice, and the output layer. dtype: of the model's weights.
    """
    if not sizes.folds:
        return 0
    turned = sizes.hidden * (sizes.channels + sizes.keys // 2)
    return (2 if dtype == "bfloat16" else 4) * (sizes.matrices + turned + sizes.head)


def human(count: float, unit: str = "") -> str:
    """1234567 -> 1.2M."""
    for suffix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(count) < 1000 or suffix == "Z":
            return f"{count:.0f}{suffix}{unit}" if suffix == "" else f"{count:.1f}{suffix}{unit}"
        count /= 1000
    raise AssertionError
