"""K responses a prompt from one policy, in shards: each finished shard is in a save point."""

import json
import math
from typing import Any

from configs.recipes import Sample
from engine.drawing import draw, fingerprint, fit, keep, restore, rows_at, split
from engine.errors import StageError
from engine.generate import generate
from engine.job import Job
from engine.models import load_policy
from engine.template import load_chat
from storage.rows import write_rows

SHARD_ROWS = 4096  # a shard is held in memory: no more responses than this, however many are asked for


def run(job: Job) -> dict[str, Any]:
    """Write responses-00000.parquet .. and sampling.json (who answered, how).

    Raises:
        StageError: no prompt fits, or the responses are not prompts x K.
    """
    recipe: Sample = job.recipe
    folder = job.folder("policy")
    chat, model, policy = load_chat(folder), load_policy(folder, job.runtime), fingerprint(folder)
    temperature = recipe.temperature or _probed(job)
    prompts = job.folder("prompts") / "rows.parquet"
    places = draw(prompts, recipe.prompts, seed=recipe.seed, stream="sample", turn=recipe.round)
    shards = split(places, max(recipe.shards, math.ceil(len(places) * recipe.k / SHARD_ROWS)))
    done, counts = restore(job, job.out)
    total = len(places) * recipe.k
    for number in range(done, len(shards)):
        kept, dropped = fit(chat, rows_at(prompts, shards[number]), recipe.limits.prompt_tokens, job.out)
        before = counts.get("responses", 0)
        rows = _answers(
            job, chat, model, policy, temperature, kept, lambda n, _, b=before: job.progress(b + n, total, "response")
        )
        written = write_rows(job.out / f"responses-{number:05d}.parquet", "Response", rows)
        if written != len(kept) * recipe.k:
            raise StageError(f"shard {number}: {written} responses, want {len(kept)} prompts x {recipe.k}")
        lengths = [len(ids) for _, ids in kept for _ in range(recipe.k)]
        now = {
            "prompt_tokens": sum(lengths),
            "squares": sum((length + len(row["token_ids"])) ** 2 for length, row in zip(lengths, rows)),
            "prompts": len(kept),
            "dropped": dropped,
            "responses": written,
            "tokens": sum(len(row["token_ids"]) for row in rows),
            "finished": sum(row["finish"] == "eos" for row in rows),
        }
        counts = {key: counts.get(key, 0) + value for key, value in now.items()}
        job.metrics(
            number + 1, {"length": now["tokens"] / max(1, written), "eos_rate": now["finished"] / max(1, written)}
        )
        if number + 1 < len(shards):
            keep(job, job.out, number + 1, counts)
    if counts["responses"] == 0 or counts["responses"] != counts["prompts"] * recipe.k:
        raise StageError(
            f"{counts['responses']} responses to {counts['prompts']} prompts x {recipe.k}; "
            f"{counts['dropped']} prompts are longer than limits.prompt_tokens {recipe.limits.prompt_tokens}"
        )
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


def _probed(job: Job) -> float:
    if "probe" not in job.inputs:
        raise StageError("sample needs a temperature: give sample.temperature, or a probe to find one")
    return float(json.loads((job.folder("probe") / "probe.json").read_text())["temperature"])


def _answers(
    job: Job, chat: Any, model: Any, policy: str, temperature: float, kept: list[Any], progress: Any
) -> list[dict[str, Any]]:
    """The Response rows of one shard."""
    recipe: Sample = job.recipe
    asked = [(row, ids, k) for row, ids in kept for k in range(recipe.k)]
    found = generate(
        model,
        chat,
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
