"""How soon the tripwires name a planted collapse, and how often they cry wolf: real online runs of a small policy.

    python -m benchmarks.collapses --seeds 3 --healthy 60

A policy learns to answer (pretraining and SFT on the built-in world), then PPO with nothing that holds it back is rewarded
for what breaks it. The delay is the number of iterations from the first update to the alarm. Prints Markdown.
"""

import argparse
import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.recipes import Ingest, Limits, Online, Optimizer, Pretrain, Source, Tokenizer, Train, Tripwires
from configs.runtime import Runtime
from engine import ingest, online, pretrain, train
from engine.job import Job
from engine.models import reward_from_policy, save_model
from engine.rollouts import Judge
from engine.template import load_chat
from engine.tripwires import start_of, violations

DELAY = 20  # iterations: the stated bound
LIMITS = Limits(prompt_tokens=64, response_tokens=48)
RARE = 77  # a token that the reward exploit is paid for
BROKEN_AT = 5  # the batch whose rewards are beyond what a loss can hold
Score = Callable[[Sequence[int]], float]

COLLAPSES: dict[str, tuple[Score, set[str]]] = {  # what is rewarded, and the rules that name what comes of it
    "repeater": (lambda ids: sum(a == b for a, b in pairwise(ids)), {"repetition", "loops"}),
    "mute": (lambda ids: -len(ids), {"mute", "short"}),
    "length exploit": (len, {"runaway", "long", "endless"}),
    "reward exploit": (lambda ids: sum(t == RARE for t in ids), {"reward"}),
}


@dataclass(frozen=True)
class Cast:
    """Folders of who takes part in every run."""

    policy: Path
    critic: Path
    prompts: Path

    def job(self, recipe: Online, out: Path) -> Job:
        """An online run of theirs."""
        out.mkdir(parents=True, exist_ok=True)
        inputs = {"policy": self.policy, "rewards": [self.critic], "prompts": self.prompts}
        return Job(stage="online", recipe=recipe, inputs=inputs, out=out, runtime=Runtime())


def steady(rate: float) -> Optimizer:
    """A constant learning rate."""
    return Optimizer(learning_rate=rate, schedule="constant", warmup=0.0, min_warmup_steps=0)


def paid_for(score: Score) -> Judge:
    """A judge by program."""
    return lambda rows, pairs, parts: {
        "helpfulness": [float(score(response)) for _, response in pairs],
        "safety": [None] * len(pairs),
    }


def breaking(at: int) -> Judge:
    """A judge whose scores of batch `at` make the loss infinite."""
    batch = [0]

    def judge(rows: Any, pairs: Any, parts: Any) -> dict[str, list[float | None]]:
        batch[0] += 1
        size = 1e30 if batch[0] == at else 1.0
        return {"helpfulness": [size * (i % 2) for i in range(len(pairs))], "safety": [None] * len(pairs)}

    return judge


def unheld(**more: Any) -> Online:
    """PPO at a rate at which it collapses, with no KL in the reward."""
    config = {"kl_coef": 0.0, "missing_eos": "none", "reward_scaling": "normalise"}
    settings: dict[str, Any] = {
        "method": "ppo", "iterations": DELAY, "batch_size": 32, "minibatch_size": 16, "warmup_batches": 0, "config": config,
        "optimizer": steady(5e-3), "critic_optimizer": steady(5e-3), "limits": LIMITS,
        "tripwires": Tripwires(on_alarm="record"),
    }  # fmt: skip
    return Online(**{**settings, **more})


def healthy(seed: int) -> Online:
    """PPO that learns: a mild rate, the KL in the reward, 10 iterations of 32 rollouts."""
    return unheld(
        config={}, iterations=10, warmup_batches=1, seed=seed, optimizer=steady(1e-3), critic_optimizer=steady(1e-3)
    )


def mild(ids: Sequence[int]) -> float:
    """The reward of healthy runs: five times the share of every third token."""
    return 5 * sum(t % 3 == 0 for t in ids) / len(ids)


def false_alarm_bound(runs: int) -> float:
    """The rate of false alarms a run that `runs` quiet ones leave possible at 95 %."""
    return float(1 - 0.05 ** (1 / runs))


def taught(policy: Path, folder: Path, rows: Path) -> None:
    """Teach a policy to answer and to end."""
    chosen = Ingest(rows="examples", sources=(Source(world="demonstrations", count=400),))
    ingest.run(Job(stage="ingest", recipe=chosen, inputs={}, out=rows, runtime=Runtime()))
    sft = Train(epochs=4, batch_size=16, optimizer=Optimizer(learning_rate=1e-2), limits=LIMITS)
    train.run(Job(stage="train", recipe=sft, inputs={"model": policy, "rows": [rows]}, out=folder, runtime=Runtime()))


def cast(root: Path) -> Cast:
    """Make everybody from nothing."""
    places = {name: root / name for name in ("documents", "prompts", "base", "rows", "talker", "critic")}
    for place in places.values():
        place.mkdir()
    for rows, name, count in (("documents", "documents", 2000), ("prompts", "prompts", 300)):
        recipe = Ingest(rows=rows, sources=(Source(world=name, count=count),))  # type: ignore[arg-type]
        ingest.run(Job(stage="ingest", recipe=recipe, inputs={}, out=places[name], runtime=Runtime()))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True}  # fmt: skip
    base = Pretrain(
        architecture=small, tokenizer=Tokenizer(vocab_size=320), steps=100, batch_size=16, sequence_length=64
    )
    job = Job(
        stage="pretrain", recipe=base, inputs={"documents": places["documents"]}, out=places["base"], runtime=Runtime()
    )
    pretrain.run(job)
    taught(places["base"], places["talker"], places["rows"])
    critic = reward_from_policy(places["talker"], Runtime(), seed=0)
    save_model(critic, load_chat(places["talker"]), places["critic"], "reward")
    return Cast(places["talker"], places["critic"], places["prompts"])


def delays(who: Cast, root: Path, seeds: int) -> list[tuple[str, str, list[str]]]:
    """(collapse, what names it, one entry a seed: iterations from the first update to its alarm, and the rule)."""
    found = []
    for name, (score, rules) in COLLAPSES.items():
        cells = []
        for seed in range(seeds):
            summary = online.run(who.job(unheld(seed=seed), root / f"{name}-{seed}"), paid_for(score))
            named = [alarm for alarm in summary["alarms"] if alarm["rule"] in rules]
            cells.append(f"{named[0]['step']} ({named[0]['rule']})" if named else f"none in {DELAY}")
        found.append((name, ", ".join(sorted(rules)), cells))
    cells = []
    for seed in range(seeds):
        recipe = unheld(
            seed=seed, config={"reward_scaling": "none"}, iterations=8, tripwires=Tripwires(on_alarm="stop")
        )
        summary = online.run(who.job(recipe, root / f"nan-{seed}"), breaking(BROKEN_AT))
        step = next((alarm["step"] for alarm in summary["alarms"] if alarm["rule"] == "nonfinite"), None)
        cells.append("none" if step is None else f"{step - BROKEN_AT} (nonfinite)")
    found.append((f"loss not finite, from batch {BROKEN_AT}", "nonfinite", cells))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--healthy", type=int, default=60)
    parser.add_argument(
        "--first", type=int, default=2000, help="the healthy runs' first seed: no rule was written on it"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()):  # the stages' event lines
            who = cast(root)
            table = delays(who, root, options.seeds)
            cried, rose, rows, alone = 0, 0, 0, Counter[str]()
            for seed in range(options.first, options.first + options.healthy):
                job = who.job(healthy(seed), root / f"healthy-{seed}")
                summary = online.run(job, paid_for(mild))
                cried += bool(summary["alarms"])
                rose += summary["score"] > summary["score_first"]
                rows += len(job.rows)
                start = start_of(job.rows)
                alone.update(alarm.rule for row in job.rows for alarm in violations(row, start, Tripwires()))
    print("| collapse | rules that name it | iterations to the alarm, by seed |\n|---|---|---|")
    for name, rules, cells in table:
        print(f"| {name} | {rules} | {'; '.join(cells)} |")
    if options.healthy:
        bound = "" if cried else f"; at 95 % at most {100 * false_alarm_bound(options.healthy):.1f} % of runs"
        seeds = f"{options.first} to {options.first + options.healthy - 1}"
        print(
            f"\n{options.healthy} healthy runs (seeds {seeds}; {rose} raised their score): {cried} with an alarm{bound}."
        )
        broke = ", ".join(f"{rule} in {count}" for rule, count in sorted(alone.items())) or "none"
        print(f"Of their {rows} iterations these broke a rule alone, without the next one: {broke}.")


if __name__ == "__main__":
    main()
