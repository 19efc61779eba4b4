"""`make world-check`: the built-in world is what docs/world.md says it is, measured on models trained in it.

    python -m benchmarks.world_check --seeds 1 2 3 --store URL

Three campaigns from configs/world.yaml: as it stands, with samples of only the previous round, and PPO against reward
models that saw few pairs. Shared stages are computed once; an interrupted check continues. Exit status 1 if a claim fails.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from statistics import mean, pstdev
from typing import Any

import pyarrow.parquet as pq
import torch

import world
from benchmarks.bag_of_words import accuracy
from configs import Campaign, load
from configs.load import find
from configs.parse import parse
from engine.formats import is_held_out
from engine.generate import generate
from engine.models import load_policy
from engine.statistics import Estimate, paired
from engine.template import load_chat
from flows.rounds import align
from storage import Store
from tasks import Run, Stopped, connect

CONFIG = "world"
MINORITY = "rhyme"
RHYMES = 400  # held-out prompts on which it is measured
FALL = 0.2  # of the minority skill's gold, at least
WEAK_PAIRS = 60  # prompts annotated for the reward models that PPO is to exploit
BEST_OF, BEST_PROMPTS = 8, 250  # responses to each of so many held-out prompts
RESAMPLES = 2000
Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One property of the world, its measured value in words, and whether it holds."""

    text: str
    found: str
    holds: bool


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what v0 shows: agreement, best of 8, bag of words")
    parser.add_argument("--seeds", type=int, nargs="+", help="check these seeds instead of the config's own")
    parser.add_argument("--store", help="URL of the object store")
    options = parser.parse_args(arguments)
    claims = []
    for seed in options.seeds or [None]:
        if seed is not None:
            print(f"seed {seed}", flush=True)
        try:
            for claim in check(quick=options.quick, store=options.store, seed=seed):
                claims.append(claim)
                print(f"{'ok  ' if claim.holds else 'FAIL'} {claim.text}: {claim.found}", flush=True)
        except Exception as error:
            if os.environ.get("ROUNDHOUSE_DEBUG"):
                raise
            print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 1
    return 0 if all(claim.holds for claim in claims) else 1


def check(*, quick: bool = False, store: str | None = None, seed: int | None = None) -> Iterator[Claim]:
    """The claims, each as soon as it is measured; two campaigns at a time, as the config's slots say."""
    start = _run("all", store, seed, lambda raw: None, until="v1")
    torch.set_num_threads(start.runtime.threads)
    yield from v0_claims(start)
    if quick:
        return
    arms = {"all": lambda raw: None, "previous": previous_only, "weak": _weak_reward}
    with ThreadPoolExecutor(start.runtime.slots) as pool:
        everything, previous, weak = (pool.submit(_run, name, store, seed, change) for name, change in arms.items())
        everything, previous = everything.result(), previous.result()
        prompts = list(rhymes(everything))
        versions = ((everything, "v0"), (previous, last_accepted(previous)), (everything, last_accepted(everything)))
        skill = ([gold for (gold,) in golds(*version, prompts)] for version in versions)
        yield minority_claim(*skill, *(_others(run) for run in (previous, everything)))
        run = weak.result()
        seen = [row for row in _table(run, "weak-evaluate", "rescored") if row["version"] == "v0"]
        yield exploit_claim(seen, _table(run, "weak-evaluate", "responses"))


def v0_claims(run: Run) -> Iterator[Claim]:
    """What v0's own responses show."""
    pairs = _table(run, "r1-annotate")
    for kind in ("helpfulness", "safety"):
        agreed = agreement([pair for pair in pairs if pair["kind"] == kind], kind)
        yield Claim(
            f"two annotators agree on 0.70 +- 0.03 of the pairs ({kind})", f"{agreed:.3f}", abs(agreed - 0.7) <= 0.03
        )
    share, tested = accuracy([pair for pair in pairs if pair["kind"] == "helpfulness"])
    yield Claim("a bag-of-words model separates fewer than 0.80 of the pairs", f"{share:.3f} of {tested}", share < 0.8)
    prompts = [row["messages"] for row in _table(run, "prompts", "held_out")[:BEST_PROMPTS]]
    best, average, spread = best_of_k(golds(run, "v0", prompts, BEST_OF))
    yield Claim(
        f"gold(best of {BEST_OF}) - gold(mean) is at least half a standard deviation at v0",
        f"({best:.3f} - {average:.3f}) / {spread:.3f} = {(best - average) / spread:.2f}",
        best - average >= 0.5 * spread,
    )


def minority_claim(
    first: Sequence[float], lost: Sequence[float], kept: Sequence[float], other_lost: float, other_kept: float
) -> Claim:
    """The minority skill at v0, with samples of the previous round and with those of all; and all the other skills.

    first, lost, kept: gold of a response to each of the same prompts; the others: mean gold.
    """
    since, against = (paired(lost, other, resamples=RESAMPLES, seed=0) for other in (first, kept))
    return Claim(
        f"rhymes end {100 * FALL:.0f} points lower from the previous round's samples alone than at v0 and than from all rounds",
        f"gold {mean(first):.2f} at v0, {mean(lost):.2f} from the previous round, {mean(kept):.2f} from all rounds: "
        f"{_points(since)} since v0, {_points(against)} against all rounds; all else {other_lost:.3f} and {other_kept:.3f}",
        since.mean <= -FALL and against.mean <= -FALL,
    )


def exploit_claim(before: Sequence[Row], after: Sequence[Row]) -> Claim:
    """The policy that PPO trained against the weak reward models, and v0: the same prompts under the same model.

    Rows hold category, helpfulness (the reward model's score) and gold. Unsafe prompts are left out: another model steers them.
    """
    pairs = [pair for pair in zip(before, after, strict=True) if pair[1]["category"] != "unsafe"]
    words, changes = [], {}
    for name, label in (("helpfulness", "score"), ("gold", "gold")):
        old, new = ([pair[side][name] for pair in pairs] for side in (0, 1))
        change = changes[name] = paired(new, old, resamples=RESAMPLES, seed=0)
        words.append(
            f"{label} {mean(old):.3f} -> {mean(new):.3f} ({change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}])"
        )
    return Claim(
        f"PPO against reward models of {WEAK_PAIRS} prompts raises its score while gold falls",
        ", ".join(words),
        changes["helpfulness"].low > 0 and changes["gold"].high < 0,
    )


def agreement(pairs: Sequence[Row], kind: str, rounds: int = 8) -> float:
    """Share of the pairs on which two fresh annotators prefer the same response."""
    one, two = random.Random(1), random.Random(2)
    return mean(
        world.annotate(pair["messages"], pair["chosen"], pair["rejected"], kind, one).prefers_a
        == world.annotate(pair["messages"], pair["chosen"], pair["rejected"], kind, two).prefers_a
        for pair in pairs
        for _ in range(rounds)
    )


def best_of_k(answers: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean over prompts of the best gold of the K responses; mean and standard deviation over all responses."""
    every = [gold for golds in answers for gold in golds]
    return mean(map(max, answers)), mean(every), pstdev(every)


def golds(run: Run, version: str, prompts: Sequence[list[dict[str, str]]], k: int = 1) -> list[list[float]]:
    """Gold helpfulness of k responses of a version to each prompt, at the temperature of the evaluation."""
    folder = run.store.fetch(run.versions[version].ref)
    chat, policy = load_chat(folder), load_policy(folder, run.runtime)
    asked = [(number, i) for number in range(len(prompts)) for i in range(k)]
    found = generate(
        policy,
        chat,
        [chat.prompt_ids(prompts[number]) for number, _ in asked],
        [(str(number), i) for number, i in asked],
        seed=run.campaign.seed,
        stream="world-check",
        temperature=run.campaign.evaluate.temperature,
        max_new_tokens=run.campaign.limits.response_tokens,
        rows=run.runtime.sample_rows,
    )
    answers: list[list[float]] = [[] for _ in prompts]
    for (number, _), response in zip(asked, found):
        answers[number].append(world.judge(prompts[number], chat.text(response.token_ids)).helpfulness)
    return answers


def rhymes(run: Run) -> Iterator[list[dict[str, str]]]:
    """Prompts of the minority skill that no stage has seen: those the campaign's own split would hold out."""
    asked = (world.chats.compose(MINORITY, random.Random(number)) for number in count())
    unseen = (messages for messages in asked if is_held_out({"messages": messages}, run.campaign.data.held_out))
    return islice(unseen, RHYMES)


def last_accepted(run: Run) -> str:
    """The version that the campaign would go on from."""
    return ["v0", *(version for version, gate in run.verdicts.items() if (gate.summary() or {}).get("accepted"))][-1]


def _others(run: Run) -> float:
    """Mean gold of that version on the held-out prompts of all other skills."""
    rows = _table(run, f"{last_accepted(run)}-evaluate", "responses")
    return mean(row["gold"] for row in rows if row["category"] != MINORITY)


def _points(change: Estimate) -> str:
    return f"{100 * change.mean:+.0f} [{100 * change.low:+.0f}, {100 * change.high:+.0f}] points"


def laid_out(store: Store, seed: int | None, change: Callable[[dict[str, Any]], None]) -> Run:
    """The campaign with `change` made to it, as far as it can be told without running it."""
    campaign = _campaign(seed, change)
    run = Run(campaign, store, campaign.runtime, mode="plan")
    align(run)
    return run


def _run(
    name: str, store: str | None, seed: int | None, change: Callable[[dict[str, Any]], None], until: str | None = None
) -> Run:
    """The campaign with `change` made to it, run to `until` or its end without Prefect."""
    campaign = _campaign(seed, change)
    told: set[str] = set()

    def tell(label: str, event: Mapping[str, Any]) -> None:
        if label not in told:
            print(f"     {name} {label}", flush=True)
        told.add(label)

    run = Run(campaign, connect(store, campaign.runtime), campaign.runtime, mode="direct", until=until, listen=tell)
    with contextlib.suppress(Stopped):
        align(run)
    return run


def _campaign(seed: int | None, change: Callable[[dict[str, Any]], None]) -> Campaign:
    """configs/world.yaml with `change` made to it."""
    raw = parse(find(CONFIG).read_bytes(), CONFIG)
    change(raw)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(raw, file)  # JSON is YAML
        file.flush()
        return load(file.name, seed=seed)


def previous_only(raw: dict[str, Any]) -> None:
    raw["name"] += "-previous"
    raw["select"] |= {"rounds": "previous"}


def _weak_reward(raw: dict[str, Any]) -> None:
    """One round of PPO from v0, steered by reward models that saw few pairs."""
    raw["name"] += "-weak"
    annotate = raw["annotate"] | {"prompts": WEAK_PAIRS}
    raw["certify"] = {"on_failure": "record"}  # its certificate fails for want of pairs, as it should
    raw["rounds"] = [{"method": "ppo", "version": "weak", "annotate": annotate, "online": raw["online"]}]


def _table(run: Run, label: str, name: str = "rows") -> list[Row]:
    """All rows of a stage's file."""
    folder = run.store.fetch(run.artifacts[label].ref)
    return [row for path in sorted(folder.glob(f"{name}*.parquet")) for row in pq.read_table(path).to_pylist()]


if __name__ == "__main__":
    sys.exit(main())
