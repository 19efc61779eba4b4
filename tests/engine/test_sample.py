"""engine.sample: K responses a prompt in resumable shards (traps T10, T40, T57, T58, T61, T62, T89)."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.recipes import Limits, Sample
from configs.runtime import Runtime
from engine import sample, sampler
from engine.batches import collate
from engine.drawing import fingerprint
from engine.errors import StageError
from engine.forwards import logps
from engine.models import load_policy
from engine.template import load_chat
from storage.rows import read_rows

LIMITS = Limits(prompt_tokens=90, response_tokens=10)


class Killed(BaseException):
    """Stands for a process that ends here."""


def recipe(**more: Any) -> Sample:
    return Sample(**{"prompts": 12, "k": 3, "temperature": 1.1, "shards": 4, "limits": LIMITS, **more})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("responses-*.parquet")) for row in read_rows(file, "Response")]


def result(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_every_prompt_gets_k_responses_that_say_who_gave_them(make_job: Any, policy: Path, prompts: Path) -> None:
    job = make_job("sample", recipe(round=2), policy=policy, prompts=prompts)
    summary = sample.run(job)
    rows = rows_of(job.out)
    assert len(rows) == summary["responses"] == 3 * summary["prompts"]
    assert summary["prompts"] + summary["dropped"] == 12 and summary["prompts"] >= 6
    assert set(Counter(row["prompt_id"] for row in rows).values()) == {3}
    assert len({(row["prompt_id"], row["k"]) for row in rows}) == len(rows)
    assert {(row["policy"], row["temperature"], row["source"]) for row in rows} == {
        (fingerprint(policy), 1.1, "round-2")
    }
    assert all(1 <= len(row["token_ids"]) <= 10 for row in rows)
    assert len({row["text"] for row in rows}) > 0.9 * len(rows)  # T89
    train = {row["id"]: row for row in read_rows(prompts / "rows.parquet")}
    assert all(row["messages"] == train[row["prompt_id"]]["messages"] for row in rows)
    made = json.loads((job.out / "sampling.json").read_text())
    assert (made["policy"], made["template"], made["k"]) == (fingerprint(policy), load_chat(policy).fingerprint, 3)
    assert len(job.rows) == 4  # one row of metrics a shard
    listed = (job.out / "dropped.jsonl").read_text().splitlines()
    assert len(listed) == summary["dropped"]


def test_shards_and_batch_size_do_not_change_the_responses(make_job: Any, policy: Path, prompts: Path) -> None:
    wanted: Any = None
    for shards, rows in ((1, 64), (3, 5), (12, 1)):
        job = make_job("sample", recipe(shards=shards), out=f"out-{shards}", runtime={"sample_rows": rows},
                       policy=policy, prompts=prompts)  # fmt: skip
        sample.run(job)
        found = [(row["prompt_id"], row["k"], row["token_ids"]) for row in rows_of(job.out)]
        wanted = wanted or found
        assert found == wanted


def test_the_policy_that_answered_is_the_one_given(make_job: Any, policy: Path, prompts: Path) -> None:
    """T61, T40: the responses are likely under these weights, and look as plain sampling from them would."""
    job = make_job("sample", recipe(k=8), policy=policy, prompts=prompts)
    sample.run(job)
    chat, model = load_chat(policy), load_policy(policy, Runtime())
    rows = rows_of(job.out)
    pairs = [(chat.prompt_ids(chat.fit_prompt(row["messages"], 90)), row["token_ids"]) for row in rows]
    with torch.inference_mode():
        found = logps(model, collate(pairs, pad_id=chat.pad_id), temperature=1.1)
    tokens = sum(len(row["token_ids"]) for row in rows)
    mean = float(found.sum()) / tokens
    # the mean log-prob of samples is minus the entropy; shuffled responses would be less likely than that
    wrong = [(pairs[i][0], [3 + (t * 7) % 300 for t in pairs[i][1]]) for i in range(len(pairs))]
    with torch.inference_mode():
        other = float(logps(model, collate(wrong, pad_id=chat.pad_id), temperature=1.1).sum()) / tokens
    assert mean > other + 0.1


def test_a_killed_stage_continues_at_its_last_shard(
    make_job: Any, policy: Path, prompts: Path, save_points: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_job("sample", recipe(), out="whole", policy=policy, prompts=prompts)
    summary = sample.run(whole)
    whole.finish()
    calls, real = [0], sampler.generate

    def counted(*args: Any, **settings: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise Killed
        return real(*args, **settings)

    monkeypatch.setattr(sampler, "generate", counted)
    first = make_job("sample", recipe(), out="first", saves=save_points(), policy=policy, prompts=prompts)
    with pytest.raises(Killed):
        sample.run(first)
    first.close()  # the save point that was being stored
    again = make_job("sample", recipe(), out="second", saves=save_points(), policy=policy, prompts=prompts)
    assert sample.run(again) == summary
    again.finish()
    assert calls[0] == 3 + 2  # the first two shards were not made again
    assert result(again.out) == result(whole.out)


def test_rounds_ask_different_prompts_and_draw_different_numbers(make_job: Any, policy: Path, prompts: Path) -> None:
    found = []
    for turn in (1, 2):
        job = make_job("sample", recipe(round=turn, prompts=8), out=f"r{turn}", policy=policy, prompts=prompts)
        sample.run(job)
        found.append(rows_of(job.out))
    assert not {row["prompt_id"] for row in found[0]} & {row["prompt_id"] for row in found[1]}
    both = []
    for turn in (1, 2):  # all prompts in both rounds
        job = make_job("sample", recipe(round=turn, prompts=1000), out=f"all{turn}", policy=policy, prompts=prompts)
        sample.run(job)
        both.append({(row["prompt_id"], row["k"]): row["text"] for row in rows_of(job.out)})
    same = sum(both[0][key] == both[1][key] for key in both[0])
    assert both[0].keys() == both[1].keys() and same < 0.1 * len(both[0])


def test_the_probe_decides_the_temperature(make_job: Any, policy: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text('{"temperature": 0.7}')
    job = make_job("sample", recipe(temperature=None), policy=policy, prompts=prompts, probe=tmp_path)
    assert sample.run(job)["temperature"] == 0.7
    assert {row["temperature"] for row in rows_of(job.out)} == {0.7}
    with pytest.raises(StageError, match="needs a temperature"):
        sample.run(make_job("sample", recipe(temperature=None), policy=policy, prompts=prompts))


def test_prompts_that_do_not_fit_are_an_error_when_none_is_left(make_job: Any, policy: Path, prompts: Path) -> None:
    small = Limits(prompt_tokens=4, response_tokens=10)
    with pytest.raises(StageError, match=r"12 prompts are longer than limits.prompt_tokens 4"):
        sample.run(make_job("sample", recipe(limits=small), policy=policy, prompts=prompts))


def test_large_shards_are_split(make_job: Any, policy: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SHARD_ROWS", 6)
    job = make_job("sample", recipe(shards=1), policy=policy, prompts=prompts)
    sample.run(job)
    assert len(list(job.out.glob("responses-*.parquet"))) == 6  # 12 x 3 responses, 6 a shard
