import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from configs.runtime import Runtime
from engine.batches import collate
from engine.errors import StageError
from engine.forwards import rewards
from engine.models import freeze, load_policy, load_reward, new_llama, reward_from_policy, save_model
from engine.template import Chat, load_chat

RUNTIME = Runtime()
IDS = torch.tensor([[1, 40, 41, 42, 2]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_transformers_loads_what_we_save(policies: dict[str, Path], architecture: str) -> None:
    folder = policies[architecture]
    ours = load_policy(folder, RUNTIME)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(ours(IDS).logits, plain.eval()(IDS).logits)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"


def test_same_model_gives_same_bytes(policy: Path, tmp_path: Path) -> None:
    save_model(load_policy(policy, RUNTIME), load_chat(policy), tmp_path / "again", "policy")
    names = sorted(p.name for p in policy.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in names:
        assert (policy / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert str(tmp_path) not in (tmp_path / "again/config.json").read_text()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reward_model_survives_saving_and_plain_loading(
    policies: dict[str, Path], architecture: str, tmp_path: Path
) -> None:
    chat = load_chat(policies[architecture])
    model = reward_from_policy(policies[architecture], RUNTIME, seed=3)
    save_model(model, chat, tmp_path, "reward")
    padded = collate([([1, 40, 41], [42, 2])], pad_id=chat.pad_id)
    with torch.no_grad():
        wanted = rewards(model, padded)
        assert torch.equal(rewards(load_reward(tmp_path, RUNTIME), padded), wanted)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)(IDS).logits[:, 0]
    assert torch.allclose(plain, wanted, atol=1e-6)


def test_score_head_follows_the_formula_and_the_seed(policy: Path) -> None:
    one, same, other = (reward_from_policy(policy, RUNTIME, seed=s).score.weight for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    weights = torch.cat([reward_from_policy(policy, RUNTIME, seed=s).score.weight.flatten() for s in range(20)])
    assert abs(float(weights.detach().std()) - (32 + 1) ** -0.5) < 0.02  # METHODS 2.4: 1 / sqrt(d + 1) = 0.174, n = 640
    assert reward_from_policy(policy, RUNTIME, seed=3).score.bias is None


def test_new_llama_depends_on_its_seed_only(chat: Chat) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    first = new_llama(sizes, chat, 7).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = new_llama(sizes, chat, 7).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["lm_head.weight"], new_llama(sizes, chat, 8).state_dict()["lm_head.weight"])


def test_loaded_models_have_no_dropout(policies: dict[str, Path], tmp_path: Path) -> None:  # T34, T75
    shutil.copytree(policies["gpt2"], tmp_path / "wet")
    config = json.loads((tmp_path / "wet/config.json").read_text())
    config |= {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    (tmp_path / "wet/config.json").write_text(json.dumps(config))
    model = load_policy(tmp_path / "wet", RUNTIME)
    assert not model.training
    assert torch.equal(model.train()(IDS).logits, model.eval()(IDS).logits)
    wet = load_policy(tmp_path / "wet", RUNTIME, dropout=0.5)
    assert not torch.equal(wet.train()(IDS).logits, wet.eval()(IDS).logits)


def test_frozen_model_takes_no_gradient(policy: Path) -> None:
    model = freeze(load_policy(policy, RUNTIME).train())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_bfloat16_keeps_the_score_head_in_float32(policy: Path, tmp_path: Path) -> None:
    model = reward_from_policy(policy, RUNTIME, seed=3)
    save_model(model, load_chat(policy), tmp_path, "reward", dtype="bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    assert {str(t.dtype) for n, t in stored.items() if n != "score.weight"} == {"torch.bfloat16"}
    assert torch.equal(stored["score.weight"], model.score.weight)
    loaded = load_reward(tmp_path, RUNTIME, dtype="bfloat16")
    assert torch.equal(loaded.score.weight, model.score.weight)


def test_incomplete_or_missing_weights_are_refused(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "half")
    state: dict[str, Any] = load_file(policy / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "half/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"model\.norm\.weight are missing"):
        load_policy(tmp_path / "half", RUNTIME)
    (tmp_path / "half/model.safetensors").unlink()
    (tmp_path / "half/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(StageError, match=r"no \.safetensors weights"):
        load_policy(tmp_path / "half", RUNTIME)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loaded_weights_lie_where_torch_would_put_them(policies: dict[str, Path], architecture: str) -> None:
    """Mapped files give addresses by the length of their header, and some kernels round by the alignment."""
    for model in (load_policy(policies[architecture], RUNTIME), reward_from_policy(policies[architecture], RUNTIME, 3)):
        assert {p.data_ptr() % 64 for p in model.parameters()} == {0}
