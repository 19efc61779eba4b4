"""K responses a prompt from one policy, in shards: each finished shard is in a save point.

A response depends on the weights, its prompt and its own random numbers, so a shard does not depend on the others: they may be
made in any order, by one process or by several replicas (engine/workers.py), and the files are the same.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.recipes import Sample
from engine import workers
from engine.drawing import DROPPED, draw, fingerprint, fit, keep, restore, split
from engine.errors import StageError
from engine.job import Job
from engine.sampler import Sampler, sampler_for
from engine.template import load_chat
from storage.rows import rows_at, write_rows

SHARD_ROWS = 4096  # a shard is held in memory: no more responses than this, however many are asked for
COUNTS = ("prompt_tokens", "squares", "prompts", "dropped", "responses", "tokens", "finished")


def run(job: Job) -> dict[str, Any]:
    """Write responses-00000.parquet .. and sampling.json (who answered, how). Of a job that names `shards`, those only.

    Raises:
        StageError: no prompt fits, or the responses are not prompts x K.
    """
    recipe: Sample = job.recipe
    folder = job.folder("policy")
    chat, policy = load_chat(folder), fingerprint(folder)
    temperature = recipe.temperature or _probed(job)
    places = draw(job.folder("prompts") / "rows.parquet", recipe.prompts, seed=recipe.seed, stream="sample",
                  turn=recipe.round)  # fmt: skip
    shards = split(places, max(recipe.shards, math.ceil(len(places) * recipe.k / SHARD_ROWS)))
    make = lambda numbers, done: _make(job, chat, policy, temperature, {n: shards[n] for n in numbers}, done)
    if "shards" in job.spec:
        for number, counts in make(job.spec["shards"], 0):
            job.shard(number, counts, [_file(number), _dropped(number)])
        return {}
    found: dict[str, dict[str, int]] = restore(job, job.out)[1]
    left = [n for n in range(len(shards)) if str(n) not in found]
    shared = workers.replicas(job.runtime) > 1 and len(left) > 1
    for number, counts in workers.shards(job, left) if shared else make(left, _sum(found, "responses")):
        found[str(number)] = counts
        _tell(job, found)
        if shared:
            job.progress(_sum(found, "responses"), len(places) * recipe.k, "response")
        if len(found) < len(shards):
            keep(job, job.out, len(found), found)
    counts = {key: _sum(found, key) for key in COUNTS}
    if counts["responses"] == 0 or counts["responses"] != counts["prompts"] * recipe.k:
        raise StageError(
            f"{counts['responses']} responses to {counts['prompts']} prompts x {recipe.k}; "
            f"{counts['dropped']} prompts are longer than limits.prompt_tokens {recipe.limits.prompt_tokens}"
        )
    with (job.out / DROPPED).open("wb") as out:
        for number in range(len(shards)):
            out.write((job.out / _dropped(number)).read_bytes())
            (job.out / _dropped(number)).unlink()
    sampling = {
        "policy": policy,
        "template": chat.fingerprint,
        "temperature": temperature,
        "k": recipe.k,
        "round": recipe.round,
    }
    (job.out / "sampling.json").write_text(json.dumps(sampling, sort_keys=True, indent=1) + "\n")
    return {
        **counts,
        "temperature": temperature,
        "policy": policy,
        "length": counts["tokens"] / counts["responses"],
        "eos_rate": counts["finished"] / counts["responses"],
    }


def _file(number: int) -> str:
    return f"responses-{number:05d}.parquet"


def _dropped(number: int) -> str:
    return f"dropped-{number:05d}.jsonl"


def _sum(found: dict[str, dict[str, int]], key: str) -> int:
    return sum(counts[key] for counts in found.values())


def _tell(job: Job, found: dict[str, dict[str, int]]) -> None:
    """A row of the curve for each shard, in the order of the shards whatever the order in which they are finished."""
    while (counts := found.get(str(len(job.rows)))) is not None:
        responses = max(1, counts["responses"])
        job.metrics(
            len(job.rows) + 1, {"length": counts["tokens"] / responses, "eos_rate": counts["finished"] / responses}
        )


def _make(
    job: Job, chat: Any, policy: str, temperature: float, shards: dict[int, Sequence[int]], done: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Write the given shards' files in this process: (number, counts) of each.

    shards: places of the prompts by number. done: responses of other shards, for the progress.
    """
    recipe: Sample = job.recipe
    total = done + sum(map(len, shards.values())) * recipe.k
    if not shards:
        return
    with sampler_for(job, job.folder("policy"), chat, recipe.limits) as ask:
        for number, places in shards.items():
            with tempfile.TemporaryDirectory() as scratch:
                rows = rows_at(job.folder("prompts") / "rows.parquet", "Prompt", places)
                kept, dropped = fit(chat, rows, recipe.limits.prompt_tokens, Path(scratch))
                (job.out / _dropped(number)).write_bytes((Path(scratch) / DROPPED).read_bytes())
            answers = _answers(
                job, chat, ask, policy, temperature, kept, lambda n, _, b=done: job.progress(b + n, total, "response")
            )
            written = write_rows(job.out / _file(number), "Response", answers)
            if written != len(kept) * recipe.k:
                raise StageError(f"shard {number}: {written} responses, want {len(kept)} prompts x {recipe.k}")
            done += written
            lengths = [len(ids) for _, ids in kept for _ in range(recipe.k)]
            yield (
                number,
                {
                    "prompt_tokens": sum(lengths),
                    "squares": sum((n + len(row["token_ids"])) ** 2 for n, row in zip(lengths, answers)),
                    "prompts": len(kept),
                    "dropped": dropped,
                    "responses": written,
                    "tokens": sum(len(row["token_ids"]) for row in answers),
                    "finished": sum(row["finish"] == "eos" for row in answers),
                },
            )


def _probed(job: Job) -> float:
    if "probe" not in job.inputs:
        raise StageError("sample needs a temperature: give sample.temperature, or a probe to find one")
    return float(json.loads((job.folder("probe") / "probe.json").read_text())["temperature"])


def _answers(
    job: Job, chat: Any, ask: Sampler, policy: str, temperature: float, kept: list[Any], progress: Any
) -> list[dict[str, Any]]:
    """The Response rows of one shard."""
    recipe: Sample = job.recipe
    asked = [(row, ids, k) for row, ids in kept for k in range(recipe.k)]
    found = ask(
        [ids for _, ids, _ in asked],
        [(row["id"], k) for row, _, k in asked],
        seed=recipe.seed,
        stream=f"sample-{recipe.round}",
        temperature=temperature,
        max_new_tokens=recipe.limits.response_tokens,
        rows=job.runtime.sample_rows,
        progress=progress,
    )
    return [
        {
            "prompt_id": row["id"],
            "k": k,
            "messages": row["messages"],
            "category": row["category"],
            "is_safety": row["is_safety"],
            "text": chat.text(response.token_ids),
            "token_ids": response.token_ids,
            "finish": response.finish,
            "policy": policy,
            "temperature": temperature,
            "source": f"round-{recipe.round}",
        }
        for (row, _, k), response in zip(asked, found)
    ]
