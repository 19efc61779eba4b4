"""A real small model, put into a real store, exported and loaded with plain transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.export import export_version
from configs import ConfigError
from storage import Corrupt, NotFound, Ref, Store, open_store
from tests.engine.tiny_models import tiny_config, train_tokenizer

MODEL = Ref("model", "train", "0123456789abcdef")
VIEW = {
    "name": "toy", "digest": "ab" * 8, "config": {"data": {}, "limits": {"prompt_tokens": 48, "response_tokens": 32}},
    "nodes": [{"label": "v0", "stage": "train", "key": MODEL.key, "inputs": []}], "compare": None,
    "versions": {"v0": {"model": MODEL.key, "evaluate": None},
                 "v1": {"model": "model/train-00000000000000aa", "evaluate": None}},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one version in it."""
    from configs.recipes import Template
    from engine.models import new_model, save_model
    from engine.template import make_chat

    made = open_store(tmp_path / "store", cache=tmp_path / "cache")
    draft = made.draft(MODEL)
    chat = make_chat(train_tokenizer(), Template())
    save_model(new_model(tiny_config("llama", len(chat.tokenizer)), seed=5), chat, draft.path, "policy")
    draft.commit({"label": "v0", "identity": {"work": "train", "recipe": {"method": "sft"}}, "seconds": 1.0})
    return made


def test_an_exported_version_loads_with_plain_transformers_and_has_its_card(store: Store, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export_version(store, VIEW, "v0", tmp_path / "new" / "v0")
    source = store.fetch(MODEL)
    manifest = store.manifest(MODEL)
    assert manifest is not None
    assert {p.name for p in folder.iterdir()} == {*manifest.files, "README.md"}
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in manifest.files)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "what is the name of the river?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        assert torch.isfinite(model(**inputs).logits).all()
    card = (folder / "README.md").read_text()
    assert "# toy v0" in card and manifest.root in card and "has not been evaluated" in card


def test_an_empty_folder_is_filled_and_a_used_one_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (export_version(store, VIEW, "v0", tmp_path / "empty") / "config.json").exists()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_version(store, VIEW, "v0", tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_version(store, VIEW, "v0", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_version_is_not_exported(store: Store, tmp_path: Path) -> None:
    config = store.fetch(MODEL) / "config.json"
    found = json.loads(config.read_text())
    config.write_text(config.read_text().replace(str(found["vocab_size"]), "9" * len(str(found["vocab_size"]))))
    with pytest.raises(Corrupt, match=r"config\.json"):
        export_version(store, VIEW, "v0", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


class Racing(Store):
    """A store one of whose files changes after it was verified and before it was copied."""

    def fetch(self, ref: Ref) -> Path:
        folder = super().fetch(ref)
        config = folder / "config.json"
        config.write_text(config.read_text().replace("llama", "lhama"))
        return folder


def test_a_file_that_changes_while_it_is_copied_is_noticed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"config\.json was altered while it was copied"):
        export_version(Racing(store.backend, store.cache), VIEW, "v0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_versions_that_are_not_there_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no version 'v9' in toy; it has v0, v1"):
        export_version(store, VIEW, "v9", tmp_path / "out")
    with pytest.raises(NotFound, match="run the stage that makes it"):
        export_version(store, VIEW, "v1", tmp_path / "out")


def test_a_place_that_cannot_be_written_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        export_version(store, VIEW, "v0", tmp_path / "file" / "out")
