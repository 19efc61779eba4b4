"""Low-rank adapters: off they are not there, on they are all that is trained, published they are merged (T35)."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from online_runs import FAST, finish, prefers, recipe
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES

from configs.recipes import Lora
from configs.runtime import Runtime
from engine import adapters, partition
from engine.batches import collate
from engine.decoders import decoder_for
from engine.forwards import logps
from engine.models import freeze, load_policy, reward_from_policy
from engine.sharding import Plain

RUNTIME = Runtime()
LORA = Lora(rank=4, alpha=8.0)
PADDED = collate([([1, 40, 41], [42, 43, 2]), ([1, 50], [51, 2])], pad_id=0)


def moved(policy: Path, steps: int = 1) -> Any:
    """A policy whose adapters have learned something."""
    model = adapters.add(load_policy(policy, RUNTIME), LORA, seed=1)
    trainer = Plain(model, FAST, 10)
    for _ in range(steps):
        trainer.backward(-trainer.forward(("policy_logp",), PADDED)["policy_logp"].sum())
        trainer.step()
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_adapters_change_nothing_and_off_they_never_do(policies: dict[str, Path], architecture: str) -> None:
    plain = freeze(load_policy(policies[architecture], RUNTIME))
    fresh = adapters.add(load_policy(policies[architecture], RUNTIME), LORA, seed=1)
    model = moved(policies[architecture])
    with torch.no_grad():
        wanted = logps(plain, PADDED)
        assert torch.equal(logps(fresh, PADDED), wanted)
        assert not torch.allclose(logps(model, PADDED), wanted, atol=1e-4)
        with adapters.off(model):
            assert torch.equal(logps(model, PADDED), wanted)  # T35: the reference, bit for bit, after an update
        assert not torch.allclose(logps(model, PADDED), wanted, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_it_is_a_plain_model_that_says_the_same(policies: dict[str, Path], architecture: str) -> None:
    model = moved(policies[architecture], steps=3)
    names = set(load_policy(policies[architecture], RUNTIME).state_dict())
    with torch.no_grad():
        before = logps(model, PADDED)
        merged = adapters.merged(model)
        assert set(merged.state_dict()) == names and not adapters.layers(merged)
        assert torch.allclose(logps(merged, PADDED), before, atol=1e-5)


def test_only_adapters_and_the_scalar_head_are_trained_and_saved(policy: Path, tmp_path: Path) -> None:
    model = adapters.add(reward_from_policy(policy, RUNTIME, seed=3), LORA, seed=1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in trained
    assert all("lora_" in name for name in trained - {"score.weight"})
    layers = adapters.layers(model)
    assert len(layers) == 2 * 7 and len(trained) == 2 * len(layers) + 1
    trainer = Plain(model, FAST, 10)
    trainer.save(tmp_path)
    stored = {
        name.split("/", 1)[1] for name in load_file(tmp_path / "model.safetensors") if name.startswith("parameter/")
    }
    assert stored == trained


def test_the_scale_is_alpha_over_rank(policy: Path) -> None:
    model = moved(policy)
    _, layer = adapters.layers(model)[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(adapters.weight_of(layer) - layer.get_base_layer().weight, 8.0 / 4 * b @ a, atol=1e-6)


def test_attention_alone(policies: dict[str, Path]) -> None:
    for architecture, folder in policies.items():
        names = adapters.targets(load_policy(folder, RUNTIME), Lora(targets="attention"))
        assert names and all("attn" in name for name in names), architecture


def test_the_sampler_reads_the_adapters(policy: Path) -> None:
    model = moved(policy, steps=5)
    with torch.inference_mode():
        found = decoder_for(model).start([[1, 40, 41]], torch.tensor([0]), 4)
        wanted = model(torch.tensor([[1, 40, 41]])).logits[:, -1].float()
        base = load_policy(policy, RUNTIME)(torch.tensor([[1, 40, 41]])).logits[:, -1]
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, base, atol=1e-2)


def test_online_the_reference_is_the_policy_with_its_adapters_off(start: Any, policy: Path) -> None:
    job = start(recipe(lora=LORA, iterations=3))
    summary = finish(job, prefers(lambda token: token % 2 == 0))
    weights, old = load_file(job.out / "model.safetensors"), load_file(policy / "model.safetensors")
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in old.items()}
    assert torch.equal(weights["model.embed_tokens.weight"], old["model.embed_tokens.weight"])
    assert not torch.equal(weights["model.layers.0.mlp.up_proj.weight"], old["model.layers.0.mlp.up_proj.weight"])
    curve = [row["kl"] for row in job.rows if not row["warmup"]]
    assert abs(curve[0]) < 1e-6 and curve[-1] != 0 and summary["iterations"] == 3


@pytest.mark.parametrize("load", [load_policy, partial(reward_from_policy, seed=3)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_copy_has_adapters_like_its_model(policies: dict[str, Path], architecture: str, load: Any) -> None:
    model = adapters.add(load(policies[architecture], RUNTIME), LORA, seed=1)
    for dtype in (torch.float32, torch.bfloat16):
        copy = partition.whole(model, dtype)
        named = [[(n, p.shape, p.requires_grad) for n, p in one.named_parameters()] for one in (model, copy)]
        assert named[0] == named[1] and len(adapters.layers(copy)) > 0
        assert {p.dtype for p in copy.parameters()} == {dtype}
