from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES
from torch import nn

from configs.runtime import Runtime
from engine import forwards
from engine.batches import collate
from engine.models import load_policy, reward_from_policy

RUNTIME = Runtime()
PAIRS = [([1, 40, 41, 42], [43, 44, 2]), ([1, 50], [51, 2]), ([1, 60, 61, 62, 63, 64, 65], [66])]


class Successor(nn.Module):
    """A model that is sure of token + 1."""

    base_model_prefix = "body"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.body = lambda input_ids, use_cache: SimpleNamespace(
            last_hidden_state=nn.functional.one_hot((input_ids + 1) % size, size).float() * 50
        )
        self.head = nn.Linear(size, size, bias=False)
        self.head.weight.data = torch.eye(size)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def test_log_prob_is_of_the_next_token() -> None:  # T04
    padded = collate([([3, 4], [5, 6, 7]), ([3, 4], [6, 7, 8])], pad_id=0)
    found = forwards.logps(Successor(10), padded)
    assert torch.allclose(found[0], torch.zeros(3), atol=1e-6)
    assert found[1, 0] < -40 and torch.allclose(found[1, 1:], torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_equals_the_models_own(policies: dict[str, Path], architecture: str) -> None:  # T05
    model = load_policy(policies[architecture], RUNTIME)
    for prompt, response in PAIRS:
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        found = forwards.logps(model, collate([(prompt, response)], pad_id=0))
        assert torch.allclose(-found.mean(), model(ids, labels=labels).loss, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_does_not_change_anything(policies: dict[str, Path], architecture: str) -> None:  # T14, T15, T16, T17
    model, scorer = load_policy(policies[architecture], RUNTIME), reward_from_policy(policies[architecture], RUNTIME, 3)
    together = collate(PAIRS, pad_id=0)
    with torch.no_grad():
        wide = (forwards.logps(model, together), forwards.values(scorer, together), forwards.rewards(scorer, together))
        for row, pair in enumerate(PAIRS):
            alone, size = collate([pair], pad_id=0), len(pair[1])
            assert torch.allclose(forwards.logps(model, alone)[0], wide[0][row, :size], atol=1e-5)
            assert torch.allclose(forwards.values(scorer, alone)[0], wide[1][row, :size], atol=1e-5)
            assert torch.allclose(forwards.rewards(scorer, alone)[0], wide[2][row], atol=1e-5)
            assert not wide[0][row, size:].any() and not wide[1][row, size:].any()


def test_reward_is_read_at_the_last_real_token_and_values_before_each(policy: Path) -> None:  # T17
    scorer = reward_from_policy(policy, RUNTIME, 3)
    ids = torch.tensor([[1, 40, 41, 2, 2, 0, 0]])  # pads 0..4 and a doubled EOS change nothing
    with torch.no_grad():
        every = scorer.score(scorer.model(ids).last_hidden_state)[0, :, 0]
        padded = collate([([1, 40], [41, 2, 2]), ([1] * 6, [5] * 3)], pad_id=0)
        assert torch.allclose(forwards.rewards(scorer, padded)[0], every[4], atol=1e-6)
        assert torch.allclose(forwards.values(scorer, padded)[0], every[1:4], atol=1e-6)


def test_scoring_twice_gives_the_same(policy: Path) -> None:  # T75
    scorer, padded = reward_from_policy(policy, RUNTIME, 3), collate(PAIRS, pad_id=0)
    assert not scorer.training
    assert torch.equal(forwards.rewards(scorer, padded), forwards.rewards(scorer, padded))


def test_temperature_and_entropy_follow_the_definition(policy: Path) -> None:
    model, padded = load_policy(policy, RUNTIME), collate(PAIRS[:1], pad_id=0)
    with torch.no_grad():
        logits = model(torch.tensor([PAIRS[0][0] + PAIRS[0][1]])).logits[0, 3:6] / 0.7
        every = logits.log_softmax(-1)
        logp, entropy = forwards.logps_entropy(model, padded, temperature=0.7)
    assert torch.allclose(logp[0], every[range(3), PAIRS[0][1]], atol=1e-5)
    assert torch.allclose(entropy[0], -(every.exp() * every).sum(-1), atol=1e-5)
    assert torch.allclose(forwards.logps(model, padded, temperature=0.7), logp, atol=1e-6)


def test_prompt_tokens_get_no_gradient_of_their_own(policy: Path) -> None:  # T06
    model = load_policy(policy, RUNTIME)
    padded = collate([([1, 40, 41, 42], [43])], pad_id=0)
    forwards.logps(model, padded).sum().backward()
    head: Any = model.get_output_embeddings().weight.grad
    with torch.no_grad():
        expected = -torch.softmax(model(torch.tensor([[1, 40, 41, 42]])).logits[0, -1], -1)
    expected[43] += 1  # the gradient of the head's rows is (onehot - p) times one state: that of the last prompt token
    ratio = head @ head[43] / (head[43] @ head[43])
    assert torch.allclose(ratio, expected / expected[43], atol=1e-4)


def test_logits_in_parts_are_the_same(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, padded = load_policy(policy, RUNTIME), collate(PAIRS, pad_id=0)

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        loss = forwards.logps(model, padded).sum()
        loss.backward()
        return loss.detach(), model.model.embed_tokens.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr(forwards, "_CHUNK", 700)
    parts = gradient()
    assert torch.allclose(whole[0], parts[0]) and torch.allclose(whole[1], parts[1], atol=1e-5)
    with torch.no_grad():
        read = forwards.logps_entropy(model, padded, 0.7)
        monkeypatch.setattr(forwards, "_READ", 2)
        for one, other in zip(read, forwards.logps_entropy(model, padded, 0.7)):
            assert torch.allclose(one, other, atol=1e-6)


def test_compute_gives_what_a_method_asks_for(policy: Path) -> None:
    model, scorer, padded = (
        load_policy(policy, RUNTIME),
        reward_from_policy(policy, RUNTIME, 3),
        collate(PAIRS, pad_id=0),
    )
    assert set(forwards.compute(("policy_logp", "reference_logp"), model, padded)) == {"policy_logp"}
    assert set(forwards.compute(("policy_logp", "policy_entropy"), model, padded)) == {"policy_logp", "policy_entropy"}
    assert set(forwards.compute(("reward",), scorer, padded)) == {"reward"}
