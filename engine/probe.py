"""The temperature at which best-of-K gains most under this round's reward models (METHODS 3.3)."""

import json
import statistics
from typing import Any

from configs.recipes import Probe
from engine.drawing import draw, fit, keep, restore
from engine.errors import StageError
from engine.job import Job
from engine.sampler import Sampler, sampler_for
from engine.scoring import Scorer, combine, load_scorers, score_all
from engine.statistics import best_of_n, self_bleu
from engine.template import load_chat
from storage.rows import rows_at


def run(job: Job) -> dict[str, Any]:
    """Write probe.json: the temperature and the whole curve.

    Each point draws with the same random numbers, so that the points differ by the temperature alone.

    Raises:
        StageError: no prompt fits the limits.
    """
    recipe: Probe = job.recipe
    folder = job.folder("policy")
    chat = load_chat(folder)
    scorers = load_scorers(job.folders("rewards"), job.runtime, chat.fingerprint)
    prompts = job.folder("prompts") / "rows.parquet"
    places = draw(prompts, recipe.prompts, seed=recipe.seed, stream="probe")
    kept, dropped = fit(chat, rows_at(prompts, "Prompt", places), recipe.limits.prompt_tokens, job.out)
    if not kept:
        raise StageError(
            f"all {dropped} prompts of the probe are longer than limits.prompt_tokens {recipe.limits.prompt_tokens}"
        )
    _, counts = restore(job, job.out)
    curve: list[dict[str, Any]] = list(counts.get("curve", []))
    with sampler_for(job, folder, chat, recipe.limits) as ask:
        for number in range(len(curve), len(recipe.temperatures)):
            curve.append(_point(job, recipe, ask, chat, scorers, kept, recipe.temperatures[number]))
            job.progress(number + 1, len(recipe.temperatures), "temperature")
            if number + 1 < len(recipe.temperatures) and job.should_save(number + 1):
                keep(job, job.out, number + 1, {"curve": curve})
    best = max(curve, key=lambda point: (point["expected_max"], -point["temperature"]))
    found = {
        "temperature": best["temperature"],
        "curve": curve,
        "k": recipe.k,
        "prompts": len(kept),
        "dropped": dropped,
    }
    (job.out / "probe.json").write_text(json.dumps(found, sort_keys=True, indent=1) + "\n")
    return found


def _point(
    job: Job, recipe: Probe, ask: Sampler, chat: Any, scorers: list[Scorer], kept: list[Any], temperature: float
) -> dict[str, Any]:
    """One temperature: the mean over prompts of the expected best score of 1, 2, 4 .. K responses, and how they look."""
    asked = [(row, ids, k) for row, ids in kept for k in range(recipe.k)]
    found = ask(
        [ids for _, ids, _ in asked],
        [(row["id"], k) for row, _, k in asked],
        seed=recipe.seed,
        stream="probe",
        temperature=temperature,
        max_new_tokens=recipe.limits.response_tokens,
        rows=job.runtime.sample_rows,
    )
    texts = [(row["messages"], chat.text(response.token_ids)) for (row, _, _), response in zip(asked, found)]
    scores = score_all(scorers, texts, recipe.limits, job.runtime.score_rows)
    branches, values = combine(
        scores["helpfulness"], scores["safety"], [row["is_safety"] for row, _, _ in asked], recipe.threshold
    )
    order = sorted(zip(branches, values))
    rank = {pair: place for place, pair in enumerate(order)}  # the piecewise order as one number
    proxy = [rank[pair] for pair in zip(branches, values)]
    groups = [slice(i, i + recipe.k) for i in range(0, len(asked), recipe.k)]
    sizes = sorted({2**e for e in range(recipe.k.bit_length()) if 2**e <= recipe.k} | {recipe.k})
    best = {n: sum(best_of_n(proxy[g], values[g], n) for g in groups) / len(groups) for n in sizes}
    repeated = [self_bleu([text for _, text in texts[g]]) for g in groups] if recipe.k > 1 else []
    return {
        "temperature": temperature,
        "expected_max": best[recipe.k],
        "expected_max_of": {str(n): value for n, value in best.items()},
        "median": sum(statistics.median(values[g]) for g in groups) / len(groups),
        "eos_rate": sum(response.finish == "eos" for response in found) / len(found),
        "length": sum(len(response.token_ids) for response in found) / len(found),
        "distinct": sum(len({texts[i][1] for i in range(g.start, g.stop)}) for g in groups) / len(texts),
        "self_bleu": sum(repeated) / len(repeated) if repeated else None,
    }
