import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_config, train_tokenizer
from transformers import AutoModelForCausalLM

from configs.recipes import Adopt, Template
from engine import adopt
from engine.errors import StageError
from engine.template import load_chat

STORIES = Path(__file__).parents[3] / "shared/models/stories260K"


@pytest.fixture(params=ARCHITECTURES)
def outside(request: pytest.FixtureRequest, policies: dict[str, Path], tmp_path: Path) -> Path:
    """A folder as others publish it: no card of ours."""
    shutil.copytree(policies[request.param], tmp_path / "outside")
    (tmp_path / "outside/roundhouse.json").unlink()
    return tmp_path / "outside"


def test_weights_are_kept_and_read_through_the_template(outside: Path, make_job: Callable[..., Any]) -> None:
    job = make_job("adopt", Adopt(path=str(outside), template=Template(user="Q: {content}\n")))
    summary = adopt.run(job)
    ids = torch.tensor([[1, 40, 41]])
    before, after = (AutoModelForCausalLM.from_pretrained(f).eval()(ids).logits for f in (outside, job.out))
    assert torch.equal(before, after) and summary["added_rows"] == 0
    chat = load_chat(job.out)
    assert chat.tokenizer.decode(chat.prompt_ids([{"role": "user", "content": "x"}])) == "<s>Q: x\nAssistant:"


def test_random_init_depends_on_the_seed(outside: Path, make_job: Callable[..., Any]) -> None:
    files = []
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        job = make_job("adopt", Adopt(path=str(outside), random_init=True, seed=seed), out=out)
        adopt.run(job)
        files.append((job.out / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pad_is_made_where_there_is_none(architecture: str, tmp_path: Path, make_job: Callable[..., Any]) -> None:
    tokenizer = train_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token  # as many published models do
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, len(tokenizer)))
    model.save_pretrained(tmp_path / "outside")
    tokenizer.save_pretrained(tmp_path / "outside")
    job = make_job("adopt", Adopt(path=str(tmp_path / "outside")))
    summary = adopt.run(job)
    chat = load_chat(job.out)
    assert summary["pad_token"] == "<|pad|>" and summary["added_rows"] == 1
    assert chat.pad_id == len(tokenizer) and chat.pad_id not in (chat.eos_id, chat.bos_id)
    loaded = AutoModelForCausalLM.from_pretrained(job.out).eval()
    assert loaded.config.pad_token_id == chat.pad_id < loaded.get_input_embeddings().weight.shape[0]
    rows = loaded.get_input_embeddings().weight
    assert torch.allclose(rows[chat.pad_id], rows[: chat.pad_id].mean(0), atol=1e-6)
    ids = torch.tensor([[1, 40, 41]])
    old = model.eval()(ids).logits
    assert torch.allclose(loaded(ids).logits[..., : old.shape[-1]], old, atol=1e-6)


@pytest.mark.skipif(not STORIES.exists(), reason="no stories260K beside the project")
def test_stories_model_keeps_its_story(make_job: Callable[..., Any]) -> None:
    plain = Template(system="{content}\n", user="{content}\n", assistant="{content}")
    job = make_job("adopt", Adopt(path=str(STORIES), pad_token="<unk>", template=plain))
    assert adopt.run(job)["pad_token"] == "<unk>"
    chat, model = load_chat(job.out), AutoModelForCausalLM.from_pretrained(job.out)
    found = model.generate(torch.tensor([[chat.bos_id]]), max_new_tokens=20, do_sample=False)
    assert chat.text(found[0, 1:].tolist()).startswith("Once upon a time, there was a little girl named Lily")


def _edit(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))


def test_unusable_models_are_refused_in_one_line(policies: dict[str, Path], tmp_path: Path, make_job: Any) -> None:
    folder = tmp_path / "outside"
    shutil.copytree(policies["llama"], folder)

    def refused(said: str, **changes: Any) -> None:
        with pytest.raises(StageError, match=said) as caught:
            adopt.run(make_job("adopt", Adopt(path=str(folder), **changes)))
        assert "\n" not in str(caught.value)

    refused("is not in the tokenizer's vocabulary", pad_token="<nope>")
    refused("pad and EOS are the same", pad_token="</s>")
    refused("is never run", trust_remote_code=True)
    refused("says hidden_size 64, the model has 32", architecture={"hidden_size": 64})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(r"no \.safetensors weights")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    _edit(folder, "tokenizer_config.json", eos_token=None)
    refused("no EOS token")
    (folder / "tokenizer.json").unlink()
    refused("no tokenizer that can be read")
