from pathlib import Path
from typing import Any

import pytest
import torch

from configs.runtime import Runtime
from engine import forwards, pruned
from engine.batches import collate
from engine.models import load_policy, reward_from_policy
from engine.packing import Shape, arrange

A, B = [1, 40, 41, 42, 43, 44, 45], [1, 40, 50]
PAIRS = [(A, [60, 61, 62, 2]), (B, [70, 2]), (A, [60, 61, 2]), (A, [80]), (B, [70, 2]), ([7], [8, 9, 10, 11])]


def both(model: Any, batch: Any, of: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Values and gradients with the last layer pruned and whole."""
    found = []
    for worth in (1.0, -1.0):
        monkeypatch.setattr(pruned, "WORTH", worth)
        model.zero_grad()
        values = of(model, batch)
        values.square().sum().backward()
        found.append((values.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_pruning_changes_nothing(
    architecture: str, form: str, policies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate(PAIRS, pad_id=0) if form == "padded" else arrange(PAIRS, pad_id=0, shape=Shape(1e6, 1.0))
    assert (batch.bias is None) == (form == "padded")
    model, scorer = (
        load_policy(policies[architecture], Runtime()),
        reward_from_policy(policies[architecture], Runtime(), 3),
    )
    for one, of in ((model, forwards.logps), (scorer, forwards.rewards), (scorer, forwards.values)):
        (short, grads), (whole, wanted) = both(one, batch, of, monkeypatch)
        assert torch.allclose(short, whole, atol=1e-5)
        assert len(grads) == len(wanted) > 0
        for a, b in zip(grads, wanted):
            assert torch.allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_only_known_bodies_are_pruned(policies: dict[str, Path]) -> None:
    for architecture, folder in policies.items():
        body = getattr(model := load_policy(folder, Runtime()), model.base_model_prefix)
        assert pruned.applies(body, 10, 100) == (architecture in ("llama", "qwen2"))
        assert not pruned.applies(body, 80, 100)


def test_models_with_a_window_or_dropout_are_left_alone(policy: Path) -> None:
    body = load_policy(policy, Runtime()).model
    body.config.layer_types = ["full_attention", "sliding_attention"]
    assert not pruned.applies(body, 10, 100)
    body.config.layer_types = None
    assert pruned.applies(body, 10, 100)
    body.train()
    body.config.attention_dropout = 0.1
    assert not pruned.applies(body, 10, 100)
