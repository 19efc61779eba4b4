"""chat + (new base - old base): identities that hold to the bit, and bases that do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_config, train_tokenizer

from configs.continuing import Transplant
from configs.recipes import Template
from configs.runtime import Runtime
from engine import transplant
from engine.errors import StageError
from engine.models import load_policy, new_model, save_model
from engine.template import Chat, load_chat, make_chat


@pytest.fixture
def shifted(policies: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """`shifted(name, seed, architecture)`: a policy moved a little by noise from the seed, with its own template."""

    def made(name: str, seed: int, architecture: str = "llama") -> Path:
        model = load_policy(policies[architecture], Runtime())
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
        read = load_chat(policies[architecture])
        save_model(model, make_chat(read.tokenizer, Template(user=f"{name}: {{content}}\n")), tmp_path / name, "policy")
        return tmp_path / name

    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2's embedding is tied
def test_identities(
    architecture: str, policies: dict[str, Path], shifted: Callable[..., Path], make_job: Callable[..., Any]
) -> None:
    base, new, chat = policies[architecture], shifted("new", 1, architecture), shifted("chat", 2, architecture)

    def go(out: str, scale: float = 1.0, **inputs: Path) -> Any:
        job = make_job("transplant", Transplant(scale=scale), out=out, **inputs)
        return transplant.run(job), load_file(job.out / "model.safetensors"), job.out

    weights = {folder: load_file(folder / "model.safetensors") for folder in (base, new, chat)}
    same = lambda a, b: all(torch.equal(a[n], b[n]) for n in b) and a.keys() == b.keys()
    _, moved, _ = go("still", chat=chat, old_base=base, new_base=base)
    assert same(moved, weights[chat])  # the base has not changed
    _, moved, _ = go("base", chat=base, old_base=base, new_base=new)
    assert same(moved, weights[new])  # the chat model is the old base
    summary, moved, out = go("moved", chat=chat, old_base=base, new_base=new)
    for name, found in moved.items():
        wanted = weights[chat][name].double() + (weights[new][name].double() - weights[base][name].double())
        assert torch.equal(found, wanted.float())
    assert summary["base_change"] > 0 and summary["chat_change"] > 0
    assert load_chat(out).template.user == "chat: {content}\n"
    _, back, _ = go("back", chat=out, old_base=new, new_base=base)
    assert all(torch.allclose(back[n], weights[chat][n], rtol=0, atol=1e-6) for n in back)  # there and back again
    _, half, _ = go("half", 0.5, chat=base, old_base=base, new_base=new)
    assert all(
        torch.allclose(2 * (half[n] - weights[base][n]), weights[new][n] - weights[base][n], atol=1e-6) for n in half
    )


def test_bases_that_do_not_fit_are_named(
    policies: dict[str, Path], policy: Path, chat: Chat, make_job: Callable[..., Any], tmp_path: Path
) -> None:
    go = lambda **inputs: transplant.run(
        make_job("transplant", Transplant(), **{"chat": policy, "old_base": policy, "new_base": policy, **inputs})
    )
    with pytest.raises(StageError, match=r"the new base is another architecture than the chat model: .* is None there"):
        go(new_base=policies["gpt2"])
    config = tiny_config("llama", len(chat.tokenizer))
    config.intermediate_size = 48
    save_model(new_model(config, 1), chat, tmp_path / "thin", "policy")
    with pytest.raises(StageError, match=r"the old base is another .* is \[32, 48\] there and \[32, 64\] in the chat"):
        go(old_base=tmp_path / "thin")
    other = make_chat(train_tokenizer(310), Template())
    save_model(new_model(tiny_config("llama", 320), 1), other, tmp_path / "other", "policy")
    with pytest.raises(StageError, match=r"new base has tokenizer .* their rows of the embedding mean other tokens"):
        go(new_base=tmp_path / "other")
    broken = load_policy(policy, Runtime())
    broken.model.norm.weight.data[0] = float("inf")
    save_model(broken, chat, tmp_path / "broken", "policy")
    with pytest.raises(StageError, match=r"weight model\.norm\.weight is not finite after the change \(1 in all\)"):
        go(new_base=tmp_path / "broken")
