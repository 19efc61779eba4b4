from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import train_tokenizer

from configs.continuing import Pack
from configs.recipes import Template
from engine import heldout, pack
from engine.corpus import check_vocabulary, encode, open_corpus, vocabulary, write_shards
from engine.errors import StageError
from engine.pretrain import Packed
from engine.template import Chat, make_chat, save_card
from storage.rows import write_rows

TEXTS = [f"the {a} fox </s> number {b}\nsings é字🙂" for a in ("red", "blue", "old") for b in range(15)]


def folder_of(path: Path, texts: list[str], held: list[str] | None = None) -> Path:
    rows = lambda texts: [{"id": f"d{i}", "text": text, "source": "test"} for i, text in enumerate(texts)]
    write_rows(path / "rows.parquet", "Document", rows(texts))
    if held is not None:
        write_rows(path / "held_out.parquet", "Document", rows(held))
    return path


@pytest.fixture
def tokenizer(chat: Chat, tmp_path: Path) -> Path:
    save_card(chat, tmp_path / "tokenizer", "policy")
    return tmp_path / "tokenizer"


def packed(job: Any) -> dict[str, Any]:
    return pack.run(job)


def test_the_stream_is_the_first_epoch_of_a_pretraining(
    chat: Chat, tokenizer: Path, tmp_path: Path, make_job: Callable[..., Any]
) -> None:
    """Replay of D0 reads it in the order in which the base was trained on it, whatever the shards."""
    documents = folder_of(tmp_path / "documents", TEXTS)
    job = make_job("pack", Pack(seed=3, shard_tokens=100), documents=documents, tokenizer=tokenizer)
    summary = packed(job)
    first = Packed(chat, TEXTS, length=summary["tokens"] - 1, seed=3).item(0)
    with ExitStack() as stack:
        corpus = open_corpus(job.out, "it", stack)
        stream = corpus.span(0, corpus.tokens)
        assert np.array_equal(stream, np.concatenate([first.prompt, first.responses[0]]))
        assert corpus.tokens == summary["tokens"] == sum(map(len, encode(chat, TEXTS))) + 2 * len(TEXTS)
        assert summary["shards"] == -(-corpus.tokens // 100) and summary["bytes"] == sum(len(t.encode()) for t in TEXTS)
        assert chat.text(stream[1:].tolist()) in TEXTS and (stream == chat.eos_id).sum() == len(TEXTS)
        for begin in (0, 95, 250, corpus.tokens - 7):  # inside a shard, across two, across the end
            item = corpus.item(begin, 20)
            wanted = np.concatenate([stream, stream])[begin : begin + 21]
            assert item.prompt.tolist() == wanted[:1].tolist() and np.array_equal(item.responses[0], wanted[1:])


def test_packing_repeats_and_names_the_stream(tokenizer: Path, tmp_path: Path, make_job: Callable[..., Any]) -> None:
    documents = folder_of(tmp_path / "documents", TEXTS, TEXTS[:4])
    runs = {
        name: (make_job("pack", recipe, out=name, documents=documents, tokenizer=tokenizer))
        for name, recipe in {"a": Pack(seed=1), "b": Pack(seed=1), "c": Pack(seed=2), "d": Pack(seed=1, shard_tokens=64),
                             "e": Pack(order="given")}.items()
    }  # fmt: skip
    digests = {name: packed(job)["digest"] for name, job in runs.items()}
    for file in runs["a"].out.iterdir():
        assert file.read_bytes() == (runs["b"].out / file.name).read_bytes()
    assert digests["a"] == digests["b"] == digests["d"] and len(set(digests.values())) == 3


def test_held_out_documents_are_kept_apart_and_whole(
    chat: Chat, tokenizer: Path, tmp_path: Path, make_job: Callable[..., Any]
) -> None:
    documents = folder_of(tmp_path / "documents", TEXTS[3:], [TEXTS[0], "", "é" * 300])
    job = make_job("pack", Pack(), documents=documents, tokenizer=tokenizer)
    assert packed(job)["held_out"] == 2
    with ExitStack() as stack:
        corpus = open_corpus(job.out, "it", stack)
        found = heldout.documents(corpus)
        assert [d.bytes for d in found] == [len(TEXTS[0].encode()), 600]
        assert chat.tokenizer.decode(found[0].ids) == TEXTS[0] and len(heldout.documents(corpus, 1)) == 1
        cut = heldout.windows(chat, found[1], 50)
        assert cut[0].prompt.tolist() == [chat.bos_id] and cut[1].prompt[0] == cut[0].responses[0][-1]
        assert np.array_equal(np.concatenate([i.responses[0] for i in cut]), found[1].ids)


def test_a_tokenizers_length_limit_does_not_cut_documents(chat: Chat) -> None:
    limited = make_chat(train_tokenizer(), Template())
    limited.tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    assert vocabulary(limited) == vocabulary(chat)
    assert [len(ids) for ids in encode(limited, TEXTS[:2])] == [len(ids) for ids in encode(chat, TEXTS[:2])]


def test_another_tokenizer_is_refused_another_template_is_not(
    chat: Chat, tokenizer: Path, tmp_path: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job("pack", Pack(), documents=folder_of(tmp_path / "documents", TEXTS), tokenizer=tokenizer)
    packed(job)
    with ExitStack() as stack:
        corpus = open_corpus(job.out, "old corpus 1", stack)
        check_vocabulary(make_chat(train_tokenizer(), Template(user="ask: {content}\n")), corpus)
        with pytest.raises(
            StageError, match=r"old corpus 1: packed with tokenizer .* Pack the documents with this model's"
        ):
            check_vocabulary(make_chat(train_tokenizer(310), Template()), corpus)


def test_what_cannot_be_packed_or_read_is_named(tokenizer: Path, tmp_path: Path, make_job: Callable[..., Any]) -> None:
    empty = folder_of(tmp_path / "empty", ["", ""])
    with pytest.raises(StageError, match="no documents with text to pack \\(2 empty ones\\)"):
        packed(make_job("pack", Pack(), documents=empty, tokenizer=tokenizer))
    with ExitStack() as stack:
        with pytest.raises(StageError, match=r"no pack\.json in empty, so it is not a packed corpus"):
            open_corpus(empty, "the new corpus", stack)
        job = make_job(
            "pack", Pack(shard_tokens=200), documents=folder_of(tmp_path / "documents", TEXTS), tokenizer=tokenizer
        )
        packed(job)
        with pytest.raises(StageError, match="no held-out documents"):
            heldout.documents(open_corpus(job.out, "it", stack))
        shard = job.out / "part-00001.safetensors"
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-5])
        with pytest.raises(StageError, match=r"shard part-00001\.safetensors cannot be read"):
            open_corpus(job.out, "it", stack)
        shard.write_bytes(max(job.out.glob("part-*")).read_bytes())
        with pytest.raises(StageError, match=r"has .* ids, pack\.json says 200"):
            open_corpus(job.out, "it", stack)
        shard.unlink()
        with pytest.raises(StageError, match="cannot be read"):
            open_corpus(job.out, "it", stack)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_shards_hold_any_id(kind: type, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    ids = np.array([0, 1, np.iinfo(np.uint16).max], dtype=kind)
    sizes, _ = write_shards(tmp_path, [ids, ids[:1]], 3, kind)
    assert sizes == [3, 1]
    assert load_file(tmp_path / "part-00000.safetensors")["ids"].tolist() == [0, 1, 65535]
