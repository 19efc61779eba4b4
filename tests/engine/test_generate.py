"""engine.generate and engine.decoders: exact sampling, whatever the batch (traps T14, T40-T43, T57, T85, T89)."""

import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    Qwen2Config,
)

from configs.recipes import Lora
from engine import adapters, pruned
from engine.decoders import CacheDecoder, LlamaDecoder, decoder_for, suits
from engine.errors import StageError
from engine.folding import Folded, Own
from engine.generate import Generated, generate, pick, uniforms

EOS = 2
CHAT = SimpleNamespace(eos_id=EOS)
SMALL = {"vocab_size": 96, "max_position_embeddings": 128}
CONFIGS = {
    "llama": LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, **SMALL),
    "qwen2": Qwen2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, pad_token_id=0, **SMALL),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=96, pad_token_id=0, eos_token_id=EOS,
                       bos_token_id=1),
    "opt": OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
                     pad_token_id=0, **SMALL),
}  # fmt: skip


def build(name: str, spread: float = 0.25) -> Any:
    """A tiny model with random weights large enough that the logits differ from token to token."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread)
    return model


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("llama")


def ask(prompts: int = 5, k: int = 4, seed: int = 0) -> tuple[list[list[int]], list[tuple[str, int]]]:
    rng = random.Random(seed)
    texts = [[1, *(rng.randrange(3, 96) for _ in range(rng.randrange(1, 14)))] for _ in range(prompts)]
    return [t for t in texts for _ in range(k)], [(f"p{i}", j) for i in range(prompts) for j in range(k)]


def sampled(model: Any, rows: int = 64, temperature: float = 1.0, seed: int = 0, **more: Any) -> list[Generated]:
    prompts, keys = ask()
    settings = {"stream": "test", "max_new_tokens": 12, **more}
    return generate(model, CHAT, prompts, keys, seed=seed, temperature=temperature, rows=rows, **settings)


def plain_logps(model: Any, prompt: list[int], response: list[int], temperature: float) -> list[float]:
    """The reference: one row, no padding, no cache."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].float() / temperature
    logps = logits.log_softmax(-1)
    return [float(logps[len(prompt) - 1 + j, token]) for j, token in enumerate(response)]


def one_by_one(model: Any, prompt: list[int], numbers: np.ndarray, temperature: float) -> list[int]:
    """The reference sampler: the whole sequence again for each token, inverse distribution function in float64."""
    ids = list(prompt)
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double() / temperature
        edges = logits.softmax(-1).cumsum(0)
        ids.append(int((edges <= number * edges[-1]).sum()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def test_every_architecture_samples_what_the_plain_loop_samples(model: Any) -> None:
    prompts, keys = ask()
    found = sampled(model, temperature=0.9)
    numbers = uniforms(0, "test", keys, 12)
    for i in range(0, len(prompts), 3):
        assert found[i].token_ids == one_by_one(model, prompts[i], numbers[i], 0.9)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_log_probs_are_the_trainers_at_the_sampling_temperature(model: Any, temperature: float) -> None:
    prompts, _ = ask()
    for prompt, response in zip(prompts, sampled(model, temperature=temperature)):
        wanted = plain_logps(model, prompt, response.token_ids, temperature)
        assert response.logps == pytest.approx(wanted, abs=1e-4)
        other = plain_logps(model, prompt, response.token_ids, temperature * 0.7)
        assert max(abs(a - b) for a, b in zip(response.logps, other)) > 1e-2  # another temperature would be seen


def test_greedy_takes_the_likeliest_token_and_reports_it_at_temperature_one(model: Any) -> None:
    prompts, _ = ask()
    for prompt, response in zip(prompts[::4], sampled(model, temperature=0.0)[::4]):
        ids = list(prompt)
        for token in response.token_ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert response.logps == pytest.approx(plain_logps(model, prompt, response.token_ids, 1.0), abs=1e-4)


def test_batch_size_and_order_do_not_matter(model: Any) -> None:
    whole = sampled(model)
    for rows in (1, 3, 7):
        found = sampled(model, rows=rows)
        assert [r.token_ids for r in found] == [r.token_ids for r in whole]
        for a, b in zip(found, whole):
            assert a.logps == pytest.approx(b.logps, abs=1e-4)
    prompts, keys = ask()
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    shuffled = generate(model, CHAT, [prompts[i] for i in order], [keys[i] for i in order], seed=0, stream="test",
                        temperature=1.0, max_new_tokens=12, rows=8)  # fmt: skip
    assert [r.token_ids for r in shuffled] == [whole[i].token_ids for i in order]


def test_same_numerics_give_the_same_bytes(llama: Any) -> None:
    assert sampled(llama, rows=8) == sampled(llama, rows=8)


def test_seeds_streams_and_k_give_other_responses(llama: Any) -> None:
    texts = [tuple(r.token_ids) for r in sampled(llama)]
    assert all(len(set(texts[i : i + 4])) >= 2 for i in range(0, 20, 4))  # T89: K responses of one prompt differ
    assert texts != [tuple(r.token_ids) for r in sampled(llama, seed=1)]  # T43: sampling, not greedy
    assert texts != [tuple(r.token_ids) for r in sampled(llama, stream="other")]


def test_finished_rows_end_with_their_eos_and_never_earlier(llama: Any) -> None:
    found = sampled(llama, temperature=1.5, max_new_tokens=60)
    ends = Counter(r.finish for r in found)
    assert ends["eos"] >= 3 and ends["length"] >= 3
    for response in found:
        assert 1 <= len(response.token_ids) == len(response.logps) <= 60
        assert EOS not in response.token_ids[:-1]
        assert (response.token_ids[-1] == EOS) == (response.finish == "eos")
        assert response.finish == "eos" or len(response.token_ids) == 60


def test_an_eos_as_first_token_is_a_response_of_one_token(llama: Any) -> None:
    prompts, keys = ask()
    first = sampled(llama, temperature=0.0)[0].token_ids[0]
    found = generate(llama, SimpleNamespace(eos_id=first), prompts[:1], keys[:1], seed=0, stream="test", temperature=0.0,
                     max_new_tokens=12, rows=4)  # fmt: skip
    assert (found[0].token_ids, found[0].finish) == ([first], "eos")


def test_pick_draws_from_the_whole_distribution() -> None:
    """Chi-square of 20,000 draws over 200 tokens: no top-k, no top-p (T41), the same at any temperature."""
    torch.manual_seed(0)
    for temperature in (0.5, 1.0, 1.7):
        logits = torch.randn(200) * 0.7
        numbers = torch.from_numpy(uniforms(7, f"chi-{temperature}", [(str(i), 0) for i in range(2000)], 10)).flatten()
        tokens, logps = pick(logits.repeat(len(numbers), 1), numbers, temperature)
        wanted = (logits.double() / temperature).softmax(-1)
        assert logps.numpy() == pytest.approx(wanted.log()[tokens].numpy(), abs=1e-4)
        counts = torch.bincount(tokens, minlength=200).double()
        common = wanted * len(numbers) >= 5
        seen = torch.cat([counts[common], counts[~common].sum()[None]])
        hoped = torch.cat([wanted[common], wanted[~common].sum()[None]]) * len(numbers)
        chi = float(((seen - hoped) ** 2 / hoped.clamp(min=1e-9)).sum())
        freedom = len(hoped) - 1
        assert chi < freedom + 4 * math.sqrt(2 * freedom)
        assert int((counts > 0).sum()) > 60  # more tokens than any implicit top-k of 50 leaves


@pytest.mark.parametrize("size", [5, 63, 64, 65, 200, 512])
def test_pick_is_the_inverse_distribution_function_at_its_edges(size: int) -> None:
    torch.manual_seed(size)
    logits = torch.randn(size) * 3
    logits[torch.randperm(size)[: size // 3]] = -math.inf
    edges = logits.double().softmax(-1).cumsum(0)
    numbers = torch.rand(400, dtype=torch.float64)
    numbers[:2] = torch.tensor([0.0, 1 - 2.0**-40], dtype=torch.float64)
    safe = (edges[None] - numbers[:, None]).abs().min(1).values > 1e-6  # away from an edge rounding cannot matter
    tokens, logps = pick(logits.repeat(400, 1), numbers.clone(), 1.0)
    assert torch.isfinite(logps).all() and torch.isfinite(logits[tokens]).all()  # never a token of probability 0
    assert torch.equal(tokens[safe], (edges[None] <= numbers[safe, None]).sum(-1))


def test_uniforms_are_uniform_and_keyed() -> None:
    numbers = uniforms(0, "s", [(f"p{i}", k) for i in range(250) for k in range(4)], 32)
    assert numbers.shape == (1000, 32) and numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=64, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 63 + 4 * math.sqrt(2 * 63)
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02  # neighbours in k
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02  # neighbours in t
    assert len(np.unique(numbers)) > 31990
    longer = uniforms(0, "s", [("p0", 1)], 64)
    assert np.array_equal(longer[0, :32], numbers[1])  # token t does not depend on how many are drawn


def test_rows_that_share_a_prompt_compute_it_once(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = LlamaDecoder.start

    def counted(self: LlamaDecoder, prompts: Any, groups: Tensor, limit: int) -> Tensor:
        asked.append(len(prompts))
        return original(self, prompts, groups, limit)

    monkeypatch.setattr(LlamaDecoder, "start", counted)
    sampled(llama, rows=64)
    assert asked == [5]


@pytest.mark.parametrize("small_head", [32, 0])
@pytest.mark.parametrize(("rows", "tokens"), [(6, 60), (9, 90), (64, 100)])
def test_rows_may_be_replaced_as_they_end(
    llama: Any, monkeypatch: pytest.MonkeyPatch, small_head: int, rows: int, tokens: int
) -> None:
    """What devices do on which a step costs the same for any rows; in both layouts of the cache."""
    whole = sampled(llama, temperature=1.5, max_new_tokens=tokens)
    monkeypatch.setattr("engine.caches.SMALL_HEAD", small_head)
    monkeypatch.setattr("engine.generate.REFILL", 0.1)
    begun: list[bool] = []
    start, init = LlamaDecoder.start, LlamaDecoder.__init__

    def counted(self: LlamaDecoder, *given: Any) -> Tensor:
        begun.append(len(self.lengths) > 0)
        return start(self, *given)

    def refilling(self: LlamaDecoder, model: Any) -> None:
        init(self, model)
        self.refills = True

    monkeypatch.setattr(LlamaDecoder, "start", counted)
    monkeypatch.setattr(LlamaDecoder, "__init__", refilling)
    found = sampled(llama, rows=rows, temperature=1.5, max_new_tokens=tokens)
    assert any(begun) == (rows < 20)  # prompts were started beside rows in flight
    assert [r.token_ids for r in found] == [r.token_ids for r in whole]
    for a, b in zip(found, whole):
        assert (a.finish, a.logps) == (b.finish, pytest.approx(b.logps, abs=1e-4))


def test_rows_that_have_ended_leave_the_batch(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = LlamaDecoder.step

    def counted(self: LlamaDecoder, tokens: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(LlamaDecoder, "step", counted)
    found = sampled(llama, temperature=1.5, max_new_tokens=60)
    needed = sum(len(r.token_ids) - 1 for r in found)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 20 > sizes[-1]
    assert needed <= sum(sizes) <= needed / 0.75 + 20  # at most a quarter of the rows runs on in vain


def test_progress_counts_responses(llama: Any) -> None:
    seen: list[tuple[int, int]] = []
    prompts, keys = ask()
    generate(llama, CHAT, prompts, keys, seed=0, stream="test", temperature=1.0, max_new_tokens=5, rows=8,
             progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen == [(i, 20) for i in range(1, 21)]


def test_nothing_asked_is_nothing_answered(llama: Any) -> None:
    assert generate(llama, CHAT, [], [], seed=0, stream="t", temperature=1.0, max_new_tokens=5, rows=8) == []


def test_only_plain_llamas_take_the_fast_path(llama: Any) -> None:
    assert isinstance(decoder_for(llama), LlamaDecoder)
    assert isinstance(decoder_for(build("qwen2")), LlamaDecoder)
    kept = build("llama")
    pruned.keep_to_one_path(kept)  # of training; a reader under ZeRO-2 is that very model
    assert isinstance(decoder_for(kept), LlamaDecoder)
    assert isinstance(decoder_for(build("gpt2")), CacheDecoder)
    windowed = Qwen2Config(**{**CONFIGS["qwen2"].to_dict(), "layer_types": ["sliding_attention", "full_attention"],
                              "use_sliding_window": True, "sliding_window": 4})  # fmt: skip
    assert isinstance(decoder_for(AutoModelForCausalLM.from_config(windowed)), CacheDecoder)
    hooked = build("llama")
    hooked.model.layers[0].register_forward_hook(lambda *a: None)
    assert not suits(hooked)
    dynamic = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                          rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, **SMALL)  # fmt: skip
    assert not suits(LlamaForCausalLM(dynamic))


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 16},
        {"tie_word_embeddings": False},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"model_type": "qwen2"},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("copied", "lora"), [(True, False), (False, False), (True, True), (False, True)])
def test_the_fast_path_equals_the_models_own_forward(
    change: dict[str, Any], copied: bool, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.folding.LARGEST_COPY", 10**9 if copied else 0)
    monkeypatch.setattr("engine.folding.WORDS", 24)
    torch.manual_seed(5)
    name = change.get("model_type", "llama")
    model = AutoModelForCausalLM.from_config(type(CONFIGS[name])(**{**CONFIGS[name].to_dict(), **change}))
    model = adapters.add(model, Lora(rank=2) if lora else None, 0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(
                1.0 if parameter.dim() == 1 else 0.0, 0.1 if "lora" in name else 0.25
            )  # norms away from one too
    layers = {type(layer) for layer in LlamaDecoder(model).layers}
    late = change.keys() & {
        "attention_bias",
        "mlp_bias",
    }  # of a Llama: on the output projection too, which no copy holds
    assert suits(model) and layers == {Folded if copied and not late else Own}
    prompts, _ = ask()
    for prompt, response in list(zip(prompts, sampled(model, max_new_tokens=40)))[::3]:
        assert response.logps == pytest.approx(plain_logps(model, prompt, response.token_ids, 1.0), abs=1e-4)


def test_bad_requests_are_refused_by_name(llama: Any) -> None:
    def ask_for(prompts: list[list[int]], keys: list[tuple[str, int]], limit: int = 4) -> None:
        generate(llama, CHAT, prompts, keys, seed=0, stream="t", temperature=1.0, max_new_tokens=limit, rows=4)

    with pytest.raises(StageError, match="different keys"):
        ask_for([[1], [1]], [("a", 0), ("a", 0)])
    with pytest.raises(StageError, match="without tokens"):
        ask_for([[]], [("a", 0)])
    with pytest.raises(StageError, match="the model has 128"):
        ask_for([[1] * 100], [("a", 0)], 40)


def test_a_broken_policy_is_named() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(StageError, match="not finite"):
        sampled(model)


def test_the_models_mode_is_left_as_it_was(llama: Any) -> None:
    llama.train()
    try:
        sampled(llama)
        assert llama.training
    finally:
        llama.eval()


def test_a_token_is_drawn_without_what_cuda_refuses() -> None:
    """Every stage sets torch's deterministic mode, in which CUDA has no running sum of floats."""
    from torch.utils._python_dispatch import TorchDispatchMode

    used = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            used.append((func, args[0].dtype if args and isinstance(args[0], torch.Tensor) else None))
            return func(*args, **(kwargs or {}))

    elsewhere = {"device": "meta"}  # any device that is no CPU takes the same way
    with Watch():
        pick(torch.empty(3, 200, **elsewhere), torch.empty(3, dtype=torch.float64, **elsewhere), 1.0)
    assert used and not [f for f, dtype in used if f is torch.ops.aten.cumsum.default and dtype.is_floating_point]
    values = torch.rand(4, 70, dtype=torch.float64)
    assert torch.allclose(values @ torch.ones(70, 70, dtype=torch.float64).triu(), values.cumsum(-1))
