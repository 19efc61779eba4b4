from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.recipes import Pretrain, Template, Tokenizer
from engine import pretrain
from engine.errors import StageError
from engine.pretrain import Packed, train_tokenizer
from engine.template import load_chat, make_chat
from storage.rows import write_rows

ARCHITECTURE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True}  # fmt: skip
TEXTS = [f"the {a} fox met {b} birds\nand sang </s> a song." for a in ("red", "blue", "old") for b in range(20)]
RECIPE = Pretrain(
    architecture=ARCHITECTURE, tokenizer=Tokenizer(vocab_size=300), sequence_length=16, batch_size=4, steps=30
)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "text": text, "source": "test"} for i, text in enumerate(TEXTS)]
    write_rows(tmp_path / "documents/rows.parquet", "Document", rows)
    return tmp_path / "documents"


def test_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    for text in (*TEXTS[:3], "never seen: \t\r\n  é字🙂 \x00", " leading", "trailing ", ""):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert train_tokenizer(TEXTS, 300).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    with pytest.raises(StageError, match="want at least 259"):
        train_tokenizer(TEXTS, 258)


def test_every_token_is_predicted_once_an_epoch() -> None:
    chat = make_chat(train_tokenizer(TEXTS, 300), Template())
    packed = Packed(chat, TEXTS, length=16, seed=3)
    count = packed.total // 16
    stream = np.concatenate([packed.item(i).responses[0] for i in range(count)])
    first = packed.item(0)
    assert first.prompt.tolist() == [chat.bos_id] and len(first.responses[0]) == 16
    assert packed.item(1).prompt[0] == first.responses[0][-1]
    documents = chat.tokenizer.decode(stream).split("</s><s>")
    assert len(documents) >= len(TEXTS) - 2 and set(documents[1:-1]) <= set(TEXTS)
    assert (stream == chat.eos_id).sum() <= len(TEXTS)  # the text "</s>" inside a document is text
    crossing = packed.item(packed.total // 16).responses[0]
    assert len(crossing) == 16
    again = Packed(chat, TEXTS, length=16, seed=4)
    assert not np.array_equal(again.item(0).responses[0], first.responses[0])


def test_model_learns_loads_plainly_and_repeats(documents: Path, make_job: Callable[..., Any]) -> None:
    jobs = [make_job("pretrain", RECIPE, out=out, documents=documents) for out in ("a", "b")]
    summary, _ = (pretrain.run(job) for job in jobs)
    assert jobs[0].rows[-1]["loss"] < 0.8 * jobs[0].rows[0]["loss"]
    assert summary["tokens"] == 30 * 4 * 16 and summary["vocabulary"] == 300
    for path in sorted(jobs[0].out.iterdir()):
        assert path.read_bytes() == (jobs[1].out / path.name).read_bytes(), path.name
    assert AutoModelForCausalLM.from_pretrained(jobs[0].out).num_parameters() == summary["parameters"]
    assert AutoTokenizer.from_pretrained(jobs[0].out).decode([1]) == "<s>"
    assert load_chat(jobs[0].out).template == RECIPE.template


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"sequence_length": 10**6}, "do not fill one sequence"),
        ({"architecture": {"hidden": 3}}, "architecture has hidden"),
    ],
)
def test_impossible_recipes_are_refused(
    changes: dict[str, Any], said: str, documents: Path, make_job: Callable[..., Any]
) -> None:
    with pytest.raises(StageError, match=said):
        pretrain.run(make_job("pretrain", RECIPE.model_copy(update=changes), documents=documents))


def test_no_documents_is_an_error(tmp_path: Path, make_job: Callable[..., Any]) -> None:
    write_rows(tmp_path / "none/rows.parquet", "Document", [])
    with pytest.raises(StageError, match="no documents"):
        pretrain.run(make_job("pretrain", RECIPE, documents=tmp_path / "none"))
