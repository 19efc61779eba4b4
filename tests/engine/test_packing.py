from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES

from configs.runtime import Runtime
from engine import forwards, pruned
from engine.batches import collate
from engine.models import load_policy, reward_from_policy
from engine.packing import Shape, arrange, grow, pack, shape_for, shape_of

A, B = [1, 40, 41, 42], [1, 40, 50]
PAIRS = [
    (A, [60, 61, 62, 2]), (B, [70, 2]), (A, [60, 61, 2]), (A, [80]), (B, [70, 2]), (A, [60, 61, 62, 2, 9]),
    ([7], [8, 9, 10, 11]),
]  # fmt: skip
CHEAP_ATTENTION = Shape(matrices=1e6, attention=1.0)
APART = Shape(matrices=1e6, attention=1e6, apart=True)


def packed(pairs: Any, **more: Any) -> Any:
    return arrange(pairs, pad_id=0, shape=CHEAP_ATTENTION, **more)


def test_shared_beginnings_are_computed_once() -> None:
    first, second, third = grow(PAIRS)
    # prompt 4, shared 60 61, then 62 2 (and 9 below it), 2, and 80
    assert [s.ids.tolist() for s in first.segments] == [A, [60, 61], [2], [62, 2], [9], [80]]
    assert [s.depth for s in first.segments] == [0, 4, 6, 6, 8, 4] and first.size == 11
    assert first.places == (0, 2, 3, 5) and first.paths == ((0, 1, 3), (0, 1, 2), (0, 5), (0, 1, 3, 4))
    assert second.size == 5 and second.paths[0] == second.paths[1]  # two equal responses are one
    assert third.size == 5
    assert packed(PAIRS).ids.shape == (1, 21)


def test_a_token_sees_itself_and_what_it_continues() -> None:  # T08
    batch = packed(PAIRS)
    seen = (batch.bias[0, 0] == 0).tolist()
    tokens = batch.ids[0].tolist()
    for row, (prompt, response) in enumerate(PAIRS):
        whole = [*prompt, *response]
        last = int(batch.last[row])
        assert [t for t, s in zip(tokens, seen[last]) if s] == whole
        assert batch.positions[0, last] == len(whole) - 1 and batch.lengths[row] == len(whole)


@pytest.mark.parametrize(
    ("architecture", "shape", "branched"),
    [
        *((name, CHEAP_ATTENTION, 0.0) for name in ARCHITECTURES),
        *((name, APART, share) for name in ("llama", "qwen2", "gpt2") for share in (0.0, 9.0)),
    ],
)
def test_packing_changes_nothing(
    policies: dict[str, Path], architecture: str, shape: Shape, branched: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # T08
    """Log-probs, values and rewards, and the gradient of all of them, as from padded rows."""
    monkeypatch.setattr("engine.batches.BRANCHED", branched)
    monkeypatch.setattr("engine.batches.LEAST", 0)
    monkeypatch.setattr("engine.batches.COPIES", 99.0)
    model, scorer = (
        load_policy(policies[architecture], Runtime()),
        reward_from_policy(policies[architecture], Runtime(), 3),
    )
    found = []
    other = arrange(PAIRS, pad_id=0, shape=shape)
    assert (other.sizes is not None) == shape.apart
    assert not shape.apart or any(other.branches) == (branched > 0)
    for batch in (collate(PAIRS, pad_id=0), other):
        model.zero_grad()
        scorer.zero_grad()
        logp, entropy = forwards.logps_entropy(model, batch, 0.7)
        value, reward = forwards.values(scorer, batch), forwards.rewards(scorer, batch)
        (logp.sum() + entropy.sum() + value.square().sum() + reward.square().sum()).backward()
        grads = [p.grad for m in (model, scorer) for p in m.parameters() if p.grad is not None]
        found.append(([logp, entropy, value, reward], grads))
    for one, two in zip(*(f[0] for f in found)):
        assert torch.allclose(one, two, atol=1e-5)
    for one, two in zip(*(f[1] for f in found)):
        assert torch.allclose(one, two, rtol=0, atol=1e-5 * max(1.0, float(one.abs().max())))


@pytest.mark.parametrize("branched", [0.0, 9.0])
def test_random_groups_are_exact(policy: Path, branched: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.batches.BRANCHED", branched)
    monkeypatch.setattr("engine.batches.LEAST", 0)
    monkeypatch.setattr("engine.batches.COPIES", 99.0)
    model, draw = load_policy(policy, Runtime()), np.random.Generator(np.random.PCG64(5))
    for _ in range(20):
        pairs: list[tuple[list[int], list[int]]] = []
        for _ in range(draw.integers(1, 5)):
            prompt = draw.integers(3, 9, size=draw.integers(1, 12)).tolist()
            pairs += [
                (prompt, draw.integers(3, 5, size=draw.integers(1, 9)).tolist()) for _ in range(draw.integers(1, 6))
            ]
        learned = [None if draw.random() < 0.5 else (draw.random(len(r)) < 0.5).tolist() for _, r in pairs]
        learned[0] = None
        with torch.no_grad():
            wanted = forwards.logps(model, collate(pairs, pad_id=0, learned=learned))
            for layout in ([[i] for i in range(len(grow(pairs)))], [list(range(len(grow(pairs))))]):
                for apart in {False, len(layout) == 1}:
                    laid = pack(pairs, grow(pairs), layout, 0, learned, apart=apart)
                    assert torch.allclose(forwards.logps(model, laid), wanted, atol=1e-5)
                    for tree, form in zip(grow(pairs), laid.branches if apart else []):
                        assert (form is None) == (tree.products[1] == 1)  # what a layout costs is told by what is done
                        assert form is None or (form.edges[0], form.lengths) == tree.branches


def test_a_body_with_a_sliding_window_keeps_its_own_forward() -> None:
    """Its layers do not see all that lies before: neither of the forms written out here may take it."""
    from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    small = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    slid = Qwen2ForCausalLM(Qwen2Config(**small, use_sliding_window=True, sliding_window=4, max_window_layers=0))
    assert shape_of(slid) is None and not pruned.known(slid.model)
    plain = Qwen2ForCausalLM(Qwen2Config(**small))
    assert shape_of(plain) is not None and pruned.known(plain.model)
    ministral = lambda window: MistralForCausalLM(MistralConfig(**small, num_key_value_heads=2, sliding_window=window))
    assert shape_of(ministral(4)) is None and shape_of(ministral(None)) is not None  # it names no kinds of layers
    assert shape_for([plain, ministral(4)]) is None and shape_for([plain, plain]) == shape_of(plain)


def test_large_trees_are_attended_to_branch_by_branch() -> None:
    """Also where a tree is alone in its batch: then it costs in matrices what it costs packed."""
    shape = Shape(matrices=8e5, attention=640.0, apart=True)
    draw = np.random.Generator(np.random.PCG64(3))
    ids = lambda count: draw.integers(3, 8000, size=count).tolist()
    prompt = ids(200)
    long = arrange([(prompt, ids(200)) for _ in range(4)], pad_id=0, shape=shape)
    assert long.sizes is not None and [form is not None for form in long.branches] == [True]
    short, long_prompt = [(prompt, ids(40)) for _ in range(2)], ids(1500)
    wide = [(long_prompt, ids(200)) for _ in range(16)]  # the prompt's keys would be copied 16 times
    for pairs in (short, wide):
        assert not any(pack(pairs, grow(pairs), [[0]], 0, apart=True).branches)


def test_the_cheaper_form_is_taken(policy: Path) -> None:
    alone = [([1, 2], [3, 4]), ([5, 6], [7, 8])]
    assert arrange(alone, pad_id=0, shape=Shape(1e6, 1e6)).bias is None  # nothing to share, attention dear: padded
    assert arrange(PAIRS, pad_id=0, shape=CHEAP_ATTENTION).bias is not None
    assert arrange(PAIRS, pad_id=0, shape=Shape(1.0, 1.0, apart=True)).sizes is None  # calls dear
    # rows of 4 cost 4 * (1e6 + 4e6) each; as many tokens and keys apart, and a call: dearer
    assert arrange(alone, pad_id=0, shape=Shape(1e6, 1e6, apart=True)).sizes is None
    found = arrange([*alone, ([1], [2])], pad_id=0, shape=Shape(1e6, 1e6, apart=True)).sizes
    assert found is not None and found.tolist() == [4, 4, 2]
    model = load_policy(policy, Runtime())
    shape = shape_of(model)
    assert shape is not None and shape.apart
    # a layer of 32: q 32x32, k and v 16x32, o 32x32; gate, up and down 64x32
    assert shape.matrices == 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    model.config.layer_types = ["sliding_attention", "full_attention"]
    assert shape_of(model) is None and arrange(PAIRS, pad_id=0, shape=None).bias is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of the compiler that is imported
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_blocks_hold_what_the_dense_mask_holds(policies: dict[str, Path], architecture: str) -> None:
    """FlexAttention, unfused here: log-probs as by the dense mask. Its backward pass exists on a GPU only."""
    batch = packed(PAIRS)
    blocks = batch.blocks
    row, places = torch.zeros((), dtype=torch.long), torch.arange(batch.ids.shape[1])
    seen = blocks.mask_mod(row, row, places[:, None], places[None])
    assert torch.equal(seen, batch.bias[0, 0] == 0)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = [
            forwards.logps(load_policy(policies[architecture], Runtime(attention=attention)), batch)
            for attention in ("dense", "flex")
        ]
    assert torch.allclose(*found, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_blocks_give_the_gradients_of_the_dense_mask(policy: Path) -> None:
    found = []
    for attention in ("dense", "flex"):
        model = load_policy(policy, Runtime(device="cuda", attention=attention))
        forwards.logps(model, packed(PAIRS).to("cuda")).sum().backward()
        found.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-4 * max(1.0, float(one.abs().max())))
