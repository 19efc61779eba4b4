"""`make world-check`: the built-in world is what docs/world.md says it is, measured on models trained in it.

Three campaigns from configs/world.yaml: as it stands, with samples of only the previous round, and PPO against a reward
model that saw few pairs. Shared stages are computed once; an interrupted check continues. Exit status 1 if a claim fails.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Any

import pyarrow.parquet as pq

import world
from benchmarks.bag_of_words import accuracy
from configs import load
from configs.load import find, parse
from engine.generate import generate
from engine.models import load_policy
from engine.template import load_chat
from flows.rounds import align
from tasks import Run, Stopped, connect

CONFIG = "world"
MINORITY = "rhyme"
RHYMES = 400  # prompts on which it is measured
WEAK_PAIRS = 60  # prompts annotated for the reward model that PPO is to exploit
Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One property of the world, its measured value in words, and whether it holds."""

    text: str
    found: str
    holds: bool


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what v0 shows: agreement, best of 8, bag of words")
    parser.add_argument("--store", help="URL of the object store")
    options = parser.parse_args(arguments)
    claims = []
    for claim in check(quick=options.quick, store=options.store):
        claims.append(claim)
        print(f"{'ok  ' if claim.holds else 'FAIL'} {claim.text}: {claim.found}", flush=True)
    return 0 if all(claim.holds for claim in claims) else 1


def check(*, quick: bool = False, store: str | None = None) -> Iterator[Claim]:
    """The claims, each as soon as it is measured."""
    everything = _run("all", store, lambda raw: None, until="v1")
    yield from v0_claims(everything)
    if quick:
        return
    everything = _run("all", store, lambda raw: None)
    yield minority_claim(everything, _run("previous", store, _previous_only))
    yield exploit_claim(_run("weak", store, _weak_reward))


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
    best, average, spread = best_of_k(_table(run, "r1-sample", "responses"))
    yield Claim(
        "gold(best of 8) - gold(mean) is at least half a standard deviation at v0",
        f"({best:.3f} - {average:.3f}) / {spread:.3f} = {(best - average) / spread:.2f}",
        best - average >= 0.5 * spread,
    )


def minority_claim(everything: Run, previous: Run) -> Claim:
    """Rhymes from v0 to the last round, by which samples a round is trained on."""
    first = rhyming(everything, "v0")
    kept, lost = (rhyming(run, list(run.versions)[-1]) for run in (everything, previous))
    return Claim(
        "rhymes fall by at least 20 points when a round sees only the previous round's samples",
        f"gold {first:.2f} at v0, {lost:.2f} from the previous round, {kept:.2f} from all rounds",
        first - lost >= 0.2 and kept > lost,
    )


def exploit_claim(run: Run) -> Claim:
    """Score and gold of the policy that PPO trained against the weak reward model, against v0's under the same one."""
    before = [row for row in _table(run, "weak-evaluate", "rescored") if row["version"] == "v0"]
    after = _table(run, "weak-evaluate", "responses")
    proxy, gold = (
        [mean(row[column] for row in rows if row["category"] != "unsafe") for rows in (before, after)]
        for column in ("helpfulness", "gold")
    )
    return Claim(
        f"PPO against a reward model of {WEAK_PAIRS} pairs raises its score while gold falls",
        f"score {proxy[0]:+.2f} -> {proxy[1]:+.2f}, gold {gold[0]:.3f} -> {gold[1]:.3f}",
        proxy[1] > proxy[0] and gold[1] < gold[0],
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


def best_of_k(responses: Sequence[Row]) -> tuple[float, float, float]:
    """Mean over prompts of the best helpfulness of the K responses; mean and standard deviation over all responses."""
    by_prompt: dict[str, list[float]] = {}
    for row in responses:
        gold = world.judge(row["messages"], row["text"]).helpfulness
        by_prompt.setdefault(row["prompt_id"], []).append(gold)
    every = [gold for golds in by_prompt.values() for gold in golds]
    return mean(map(max, by_prompt.values())), mean(every), pstdev(every)


def rhyming(run: Run, version: str) -> float:
    """Mean gold helpfulness on many prompts of the minority skill: too few are among the held-out ones to tell."""
    folder = run.store.fetch(run.versions[version].ref)
    chat, policy = load_chat(folder), load_policy(folder, run.runtime)
    asked = [world.chats.compose(MINORITY, random.Random(number)) for number in range(RHYMES)]
    found = generate(
        policy,
        chat,
        [chat.prompt_ids(messages) for messages in asked],
        [(str(number), 0) for number in range(RHYMES)],
        seed=0,
        stream="world-check",
        temperature=run.campaign.evaluate.temperature,
        max_new_tokens=run.campaign.limits.response_tokens,
        rows=run.runtime.sample_rows,
    )
    texts = [chat.text(response.token_ids) for response in found]
    return mean(world.judge(messages, text).helpfulness for messages, text in zip(asked, texts))


def _run(name: str, store: str | None, change: Callable[[dict[str, Any]], None], until: str | None = None) -> Run:
    """The campaign of configs/world.yaml with `change` made to it, run to `until` or its end without Prefect."""
    raw = parse(find(CONFIG).read_bytes(), CONFIG)
    change(raw)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(raw, file)  # JSON is YAML
        file.flush()
        campaign = load(file.name)

    told: set[str] = set()

    def tell(label: str, event: Mapping[str, Any]) -> None:
        if label not in told:
            print(f"     {name} {label}", flush=True)
        told.add(label)

    run = Run(campaign, connect(store, campaign.runtime), campaign.runtime, mode="direct", until=until, listen=tell)
    with contextlib.suppress(Stopped):
        align(run)
    return run


def _previous_only(raw: dict[str, Any]) -> None:
    raw["name"] += "-previous"
    raw["select"] |= {"rounds": "previous"}


def _weak_reward(raw: dict[str, Any]) -> None:
    raw["name"] += "-weak"
    annotate = raw["annotate"] | {"prompts": WEAK_PAIRS}
    raw["rounds"] = [{"method": "ppo", "version": "weak", "annotate": annotate, "online": raw["online"]}]


def _table(run: Run, label: str, name: str = "rows") -> list[Row]:
    """All rows of a stage's file."""
    folder = run.store.fetch(run.artifacts[label].ref)
    return [row for path in sorted(folder.glob(f"{name}*.parquet")) for row in pq.read_table(path).to_pylist()]


if __name__ == "__main__":
    sys.exit(main())
