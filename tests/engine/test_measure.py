"""Losses on held-out text against sums worked out plainly, and differences with their intervals."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pack import folder_of
from transformers import AutoModelForCausalLM

from configs.continuing import Measure, Pack
from configs.runtime import Runtime
from engine import measure, pack
from engine.errors import StageError
from engine.models import load_policy, save_model
from engine.statistics import ratio
from engine.tables import read_table
from engine.template import Chat

HELD = ["the red fox runs", "a small bird sings in the old tree, and sings é"]


@pytest.fixture
def corpus(policy: Path, tmp_path: Path, make_job: Callable[..., Any]) -> Callable[..., Path]:
    """`corpus(held)`: a packed corpus with these held-out documents."""

    def made(held: list[str] | None, out: str = "corpus") -> Path:
        documents = folder_of(tmp_path / f"{out}-documents", ["the old tree"] * 30, held)
        job = make_job("pack", Pack(), out=out, documents=documents, tokenizer=policy)
        pack.run(job)
        return Path(job.out)

    return made


def plainly(folder: Path, chat: Chat, text: str) -> float:
    """Nats of a text after BOS, by the model's own forward in one piece."""
    ids = torch.tensor([[chat.bos_id, *chat.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        logp = torch.log_softmax(AutoModelForCausalLM.from_pretrained(folder)(ids).logits.double(), -1)
    return -float(logp[0, :-1].gather(1, ids[0, 1:, None]).sum())


def test_nats_and_bits_are_the_plain_sums(
    policies: dict[str, Path], policy: Path, chat: Chat, corpus: Callable[..., Path], make_job: Callable[..., Any]
) -> None:
    models = [policy, policies["gpt2"]]
    recipe = Measure(labels=("old", "new"), corpora=("text",), sequence_length=100)
    job = make_job("measure", recipe, models=models, corpora=[corpus(HELD)])
    summary = measure.run(job)
    tokens = [len(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in HELD]
    size = sum(len(text.encode()) for text in HELD)
    assert summary["corpora"]["text"] == {"documents": 2, "tokens": sum(tokens), "bytes": size, "unit": "window"}
    totals = {}
    for label, folder in zip(recipe.labels, models):
        totals[label] = sum(plainly(folder, chat, text) for text in HELD)
        found = summary["models"][label]["text"]
        assert found["nats"] == pytest.approx(totals[label] / sum(tokens), rel=1e-6)
        assert found["bits"] == pytest.approx(totals[label] / math.log(2) / size, rel=1e-6)
    difference = summary["differences"]["new"]["text"]
    assert difference["mean"] == pytest.approx((totals["new"] - totals["old"]) / sum(tokens), rel=1e-5)
    assert difference["low"] <= difference["mean"] <= difference["high"] and summary["against"] == "old"
    rows = list(read_table(job.out / "documents.parquet"))
    assert [(r["model"], r["tokens"]) for r in rows] == [(m, t) for m in recipe.labels for t in tokens]
    assert sum(r["nats"] for r in rows if r["model"] == "old") == pytest.approx(totals["old"], rel=1e-6)


def test_a_long_document_is_read_in_windows(
    policy: Path, chat: Chat, corpus: Callable[..., Path], make_job: Callable[..., Any]
) -> None:
    """Every token once, each window beginning with one token of context: what plain windows give."""
    text = " ".join(HELD * 30)
    ids = [chat.bos_id, *chat.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len(ids) > 5 * 20
    model, total = AutoModelForCausalLM.from_pretrained(policy), 0.0
    with torch.inference_mode():
        for first in range(0, len(ids) - 1, 20):
            window = torch.tensor([ids[first : first + 21]])
            logp = torch.log_softmax(model(window).logits.double(), -1)[0, :-1]
            total -= float(logp.gather(1, window[0, 1:, None]).sum())
    job = make_job("measure", Measure(sequence_length=20), models=[policy], corpora=[corpus([text])])
    found = measure.run(job)
    assert found["models"]["0"]["0"]["nats"] == pytest.approx(total / (len(ids) - 1), rel=1e-6)
    assert found["corpora"]["0"]["tokens"] == len(ids) - 1


def test_a_model_against_itself_differs_by_nothing(
    policy: Path, corpus: Callable[..., Path], make_job: Callable[..., Any]
) -> None:
    held = [f"the {word} runs" for word in "abcdefghijklmnopqrstuvw"]
    recipe = Measure(sequence_length=50, documents=21)
    found = measure.run(make_job("measure", recipe, models=[policy, policy], corpora=[corpus(held)]))
    assert found["differences"]["1"]["0"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["corpora"]["0"]["documents"] == 21 and found["corpora"]["0"]["unit"] == "document"


def test_ratio_counts_units_by_their_size() -> None:
    """(1 + 30) / (1 + 10), not the mean of 1 and 3; with equal sizes it is the mean and its interval is the mean's."""
    found = ratio(np.array([1.0, 30.0]), np.array([1.0, 10.0]), resamples=500, seed=1)
    assert found.mean == pytest.approx(31 / 11) and found.low == 1.0 and found.high == 3.0
    draw = np.random.Generator(np.random.PCG64(1)).normal(2.0, 1.0, size=400)
    found = ratio(draw, np.ones(400), resamples=4000, seed=1)
    assert found.mean == pytest.approx(draw.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * draw.std() / 20, rel=0.05)
    for above, below in (([], []), ([1.0], [0.0]), ([math.nan], [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="want"):
            ratio(np.array(above), np.array(below), resamples=10, seed=1)


def test_what_cannot_be_measured_is_named(
    policy: Path, chat: Chat, corpus: Callable[..., Path], make_job: Callable[..., Any], tmp_path: Path
) -> None:
    go = lambda recipe, model=policy, held=HELD: measure.run(
        make_job("measure", recipe, models=[model], corpora=[corpus(held, "with" if held else "without")])
    )
    with pytest.raises(StageError, match=r"labels \['a', 'b'\] for 1 models"):
        go(Measure(labels=("a", "b")))
    with pytest.raises(StageError, match="corpus news: no held-out documents"):
        go(Measure(corpora=("news",)), held=None)
    broken = load_policy(policy, Runtime())
    broken.model.norm.weight.data[0] = float("nan")
    save_model(broken, chat, tmp_path / "broken", "policy")
    with pytest.raises(StageError, match="its loss on corpus 0 is not finite"):
        go(Measure(), model=tmp_path / "broken")
