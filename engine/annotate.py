"""Preferences of one round: two responses a prompt, from two policies at different temperatures, and somebody's word.

METHODS 2.3. Annotators: gold (the simulated annotators of a built-in domain), dataset (human pairs dealt out), reward_model,
tier (the pair is ordered by the strength of the policy that wrote it).
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.recipes import Annotate
from engine.drawing import DROPPED, WAVES, Row, chunks, draw, fingerprint, fit, keep, restore, share_of
from engine.errors import StageError
from engine.generate import generate
from engine.job import Job
from engine.judges import Judge, judge, mood
from engine.models import load_policy
from engine.scoring import KINDS, load_scorers, names, score_all
from engine.template import load_chat
from storage.rows import parts, read_rows, rows_at, write_rows

GRADES = (
    0.6,
    1.4,
    3.0,
)  # differences of raw scores (probabilities 0.65, 0.80, 0.95) from which a reward model grades 1, 2, 3
COUNTS = ("prompts", "dropped", "identical", "unsafe_chosen", "pairs", "helpfulness", "safety", "agreed")
Pair = dict[str, Any]  # what a Preference needs: chosen, rejected, grade, chosen_safe, rejected_safe, agreement


def run(job: Job) -> dict[str, Any]:
    """Write rows.parquet (Preference).

    Raises:
        StageError: nobody who could judge, one policy where two are needed, no pair left.
    """
    recipe: Annotate = job.recipe
    counts = _deal(job) if recipe.annotator == "dataset" else _compare(job)
    if counts["pairs"] == 0:
        raise StageError(f"round {recipe.round}: no preference came out of the annotation ({dict(counts)})")
    return dict(sorted(counts.items()))


def _deal(job: Job) -> Counter[str]:
    """This round's batch of the given pairs: all pairs on one prompt fall into the same batch, whatever their order.

    Those that ingest held out are passed on, for the reward models' certificate alone.
    """
    recipe: Annotate = job.recipe
    if recipe.round > recipe.batches:
        raise StageError(
            f"round {recipe.round} asks for a batch of {recipe.batches} dealt ones; set annotate.batches to the rounds"
        )
    counts: Counter[str] = Counter()

    def batch(file: Path) -> Iterator[Row]:
        for row in read_rows(file, "Preference"):
            if int(share_of(row["prompt_id"]) * recipe.batches) == recipe.round - 1:
                yield row

    def counted() -> Iterator[Row]:
        for row in batch(job.folder("preferences") / "rows.parquet"):
            counts.update(pairs=1, **{row["kind"]: 1})
            yield row

    write_rows(job.out / "rows.parquet", "Preference", counted())
    if (held_out := job.folder("preferences") / "held_out.parquet").exists():
        counts["held_out"] = write_rows(job.out / "held_out.parquet", "Preference", batch(held_out))
    return counts


def _compare(job: Job) -> Counter[str]:
    """Sample both policies chunk by chunk, have each pair judged, and put the chunks together."""
    recipe: Annotate = job.recipe
    prompts = job.folder("prompts") / "rows.parquet"
    places = draw(prompts, recipe.prompts, seed=recipe.seed, stream="annotate", turn=recipe.round)
    pair_of, who = _annotator(job)
    policies = _policies(job)
    runs = chunks(places, max(1, WAVES * job.runtime.sample_rows // 2))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        done, found = restore(job, folder)
        counts = Counter({**dict.fromkeys(COUNTS, 0), **found})
        for number in range(done, len(runs)):
            rows = list(rows_at(prompts, "Prompt", runs[number]))
            made, dropped = _sample(job, policies, rows, folder)
            pairs = [
                {
                    "prompt_id": row["id"],
                    "messages": row["messages"],
                    "category": row["category"],
                    "is_safety": row["is_safety"],
                    "kind": _kind(recipe, row),
                    "annotator": who,
                    "source": f"round-{recipe.round}",
                    "responses": texts,
                }
                for row, texts in made
            ]
            kept = [{k: v for k, v in p.items() if k != "responses"} for p in _judged(pairs, pair_of, counts)]
            counts.update(prompts=len(rows), dropped=dropped, pairs=len(kept))
            write_rows(folder / f"part-{number:05d}.parquet", "Preference", kept)
            job.progress(number + 1, len(runs), "batch")
            if number + 1 < len(runs) and job.should_save(number + 1):
                keep(job, folder, number + 1, counts)
        write_rows(job.out / "rows.parquet", "Preference", (row for part in parts(folder) for row in read_rows(part)))
        shutil.copyfile(folder / DROPPED, job.out / DROPPED)
    return counts


def _judged(
    pairs: Sequence[Pair], pair_of: Callable[[Sequence[Pair]], list[Pair]], counts: Counter[str]
) -> Iterator[Pair]:
    """The pairs with somebody's word on them; pairs that teach nothing, or the wrong thing, are dropped and counted."""
    different = [pair for pair in pairs if pair["responses"][0] != pair["responses"][1]]
    counts["identical"] += len(pairs) - len(different)
    for pair, word in zip(different, pair_of(different)):
        if pair["kind"] == "safety" and word["chosen_safe"] is False and word["rejected_safe"] is True:
            counts["unsafe_chosen"] += 1  # METHODS 2.1: never teach that the unsafe one is better
            continue
        counts[pair["kind"]] += 1
        counts["agreed"] += word["agreement"] == 1.0
        yield pair | word


def _kind(recipe: Annotate, row: Row) -> str:
    """What is judged: safety on safety prompts, helpfulness on the others; the only kind there is, if there is one."""
    wanted = "safety" if row["is_safety"] else "helpfulness"
    return wanted if wanted in recipe.kinds else recipe.kinds[0]


def _policies(job: Job) -> list[tuple[Any, Any]]:
    """The two writers as (chat, model); one loaded model where both are the same."""
    folders = [job.folder("policy_a"), job.folder("policy_b")]
    same = fingerprint(folders[0]) == fingerprint(folders[1])
    if same and job.recipe.annotator == "tier":
        raise StageError("annotator tier needs two policies of different strength, policy_a and policy_b are the same")
    first = (load_chat(folders[0]), load_policy(folders[0], job.runtime))
    return [first, first if same else (load_chat(folders[1]), load_policy(folders[1], job.runtime))]


def _sample(
    job: Job, policies: Sequence[tuple[Any, Any]], rows: list[Row], folder: Path
) -> tuple[list[tuple[Row, list[str]]], int]:
    """One response of each policy to each prompt that fits; and how many prompts do not."""
    recipe: Annotate = job.recipe
    kept, dropped = fit(policies[0][0], iter(rows), recipe.limits.prompt_tokens, folder)
    texts: list[list[str]] = []
    limit = recipe.limits.prompt_tokens
    for k, (chat, model) in enumerate(policies):
        prompts = [chat.prompt_ids(chat.asking(chat.fit_prompt(row["messages"], limit))) for row, _ in kept]
        found = generate(
            model,
            chat,
            prompts,
            [(row["id"], k) for row, _ in kept],
            seed=recipe.seed,
            stream=f"annotate-{recipe.round}",
            temperature=recipe.temperatures[k],
            max_new_tokens=recipe.limits.response_tokens,
            rows=job.runtime.sample_rows,
        )
        texts.append([chat.text(response.token_ids) for response in found])
    return [(row, [texts[0][i], texts[1][i]]) for i, (row, _) in enumerate(kept)], dropped


def _annotator(job: Job) -> tuple[Callable[[Sequence[Pair]], list[Pair]], str]:
    """Whoever states the preferences: a function from pairs to words, and a name for the rows."""
    recipe: Annotate = job.recipe
    if recipe.annotator == "tier":
        return lambda pairs: [_word(pair, True) for pair in pairs], "tier"
    if recipe.annotator == "reward_model":
        if not job.folders("rewards"):
            raise StageError(
                "annotator reward_model needs the reward models of an earlier round; use gold or dataset in the first"
            )
        scorers = load_scorers(job.folders("rewards"), job.runtime, load_chat(job.folder("policy_a")).fingerprint)
        return lambda pairs: _scored(job, scorers, pairs), f"reward_model {names(scorers)}"
    gold = judge(recipe.judge)
    if gold is None:
        raise StageError(
            "annotator gold needs a judge (world or stories); with judge none use dataset, reward_model or tier"
        )
    return lambda pairs: [_gold(gold, recipe, pair) for pair in pairs], "gold"


def _gold(gold: Judge, recipe: Annotate, pair: Pair) -> Pair:
    """One annotator's word, and whether a second one agrees."""
    words = [
        gold.annotate(
            pair["messages"], *pair["responses"], pair["kind"], mood(recipe.seed, recipe.round, pair["prompt_id"], n)
        )
        for n in range(2)
    ]
    first = words[0]
    safe = (first.a_safe, first.b_safe)
    return _word(pair, first.prefers_a, first.grade, safe, float(first.prefers_a == words[1].prefers_a))


def _scored(job: Job, scorers: Sequence[Any], pairs: Sequence[Pair]) -> list[Pair]:
    """The reward models' word: the higher score of the pair's kind, graded by the difference."""
    texts = [(pair["messages"], text) for pair in pairs for text in pair["responses"]]
    found = score_all(scorers, texts, job.recipe.limits, job.runtime.score_rows)
    judging = {scorer.kind for scorer in scorers}
    words = []
    for i, pair in enumerate(pairs):
        kind = pair["kind"] if pair["kind"] in judging else KINDS[0]
        a, b = found[kind][2 * i : 2 * i + 2]
        labels = [None if s is None else s >= job.recipe.threshold for s in found["safety"][2 * i : 2 * i + 2]]
        grade = sum(abs(a - b) >= step for step in GRADES)
        words.append(_word(pair, a > b, grade, (labels[0], labels[1])))
    return words


def _word(
    pair: Pair,
    prefers_a: bool,
    grade: int | None = None,
    safe: tuple[bool | None, bool | None] = (None, None),
    agreement: float | None = None,
) -> Pair:
    order = (0, 1) if prefers_a else (1, 0)
    return {
        "chosen": pair["responses"][order[0]],
        "rejected": pair["responses"][order[1]],
        "grade": grade,
        "chosen_safe": safe[order[0]],
        "rejected_safe": safe[order[1]],
        "agreement": agreement,
    }
