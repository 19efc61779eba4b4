"""Continued pretraining against its baselines: the tables of docs/continual.md. Source: Ibrahim et al. 2024 (arXiv 2403.08763).

    python -m benchmarks.replay world [--seeds 1 2 3] [--groups coarse constant baselines fine small] [--store URL] [--show]
    ROUNDHOUSE_DATA=DIR python -m benchmarks.replay text

`world` trains tiny models on the two domains of the built-in world: the meadow (D1), then the shore (D2). `text` continues
stories260K on technical English and on German law, with its stories replayed. Every run is a stage in the store: killed and
started again, the command goes on where it was; coarse arms come first. `--show` prints what is there and runs nothing.
Numbers are held-out losses, mean over the seeds and half the width of its 95 % t-interval.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from configs import Base, Campaign, Data, Runtime
from configs.continuing import Continue, Measure, Pack, Warmed
from configs.load import locate
from configs.recipes import Adopt, Ingest, Optimizer, Pretrain, Source, Template, Tokenizer
from tasks import Artifact, Run, adopt, connect, continue_pretraining, ingest, measure, pack, pretrain

T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # Student's t, 97.5 %, by seeds
SHAPE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 6,
         "num_key_value_heads": 6, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
COUNTS = {
    "main": 6300,
    "second": 3800,
    "small": 190,
}  # documents of the world; main and second are about equal in tokens
PEAK, FLOOR = 6e-3, 0.1
GROUPS = ("coarse", "constant", "baselines", "fine", "small")  # of arms, in the order in which they are run
PIECE = 2000  # characters of a held-out or training piece of a long real document
STORIES = Adopt(
    path="models/stories260K",
    pad_token="<unk>",
    template=Template(system="{content}\n", user="{content}\n", assistant="{content}", separator="\n", bos=True),
)


@dataclass(frozen=True)
class Arm:
    """One way to come to a model that knows D1 and D2."""

    label: str
    group: str = "coarse"
    replay: float = 0.0
    rewarm: bool = True  # else constant at the rate the base ended with
    start: str = "base"  # base, or init: the base's shape and tokenizer, untrained
    text: str = "new"  # what is trained on: new, small (a piece of new), or union (of old and new)
    epochs: float = 1.0


CONTINUED = (
    Arm("continued, no replay"),
    Arm("continued, 1 % replay", replay=0.01),
    Arm("continued, 5 % replay", replay=0.05),
    Arm("continued, 25 % replay", replay=0.25),
    Arm("continued, 0.5 % replay", "fine", replay=0.005),
    Arm("continued, 10 % replay", "fine", replay=0.1),
    Arm("continued, 50 % replay", "fine", replay=0.5),
    Arm("no re-warming, no replay", "constant", rewarm=False),
    Arm("no re-warming, 5 % replay", "constant", replay=0.05, rewarm=False),
)
SCRATCH = (
    Arm("union from scratch, all of both", "baselines", start="init", text="union"),
    Arm("union from scratch, half of it", "baselines", start="init", text="union", epochs=0.5),
    Arm("D2 from scratch", "baselines", start="init"),
)
SMALL = tuple(
    Arm(f"small D2, {100 * r:g} % replay", "small", replay=r, text="small", epochs=4.0) for r in (0.0, 0.05, 0.25)
)


def world(run: Run, groups: Sequence[str]) -> dict[str, Artifact]:
    """The stages of one seed on the built-in world; returns the measurement of each group."""
    seed = run.campaign.seed
    sources = {
        "old": (Source(world="documents", count=COUNTS["main"]),),
        "new": (Source(world="documents", domain="second", count=COUNTS["second"]),),
        "small": (Source(world="documents", domain="second", count=COUNTS["small"]),),
    }
    sources["union"] = (*sources["old"], *sources["new"])
    rows = {
        name: ingest(run, f"{name}-documents", Ingest(rows="documents", sources=given, held_out=0.05, seed=seed))
        for name, given in sources.items()
    }
    barely = Optimizer(learning_rate=1e-6, warmup=0.0, min_warmup_steps=0)
    nothing = Pretrain(architecture=SHAPE, tokenizer=Tokenizer(vocab_size=768), optimizer=barely, steps=1, seed=seed)
    starts = {"init": pretrain(run, "init", nothing, documents=rows["old"])}
    corpora = {
        name: pack(run, f"{name}-corpus", Pack(seed=seed), documents=found, tokenizer=starts["init"])
        for name, found in rows.items()
    }
    first = recipe(Arm("base"), 64, 16, PEAK)
    starts["base"] = continue_pretraining(run, "base", first, model=starts["init"], new=corpora["old"])
    arms = [arm for arm in (*CONTINUED, *SCRATCH, *SMALL) if arm.group in groups]
    made = {arm: train(run, arm, recipe(arm, 64, 16, PEAK), starts, corpora) for arm in arms}
    limits = Measure(sequence_length=64, seed=seed)
    return judged(run, groups, made, starts["base"], [corpora["old"], corpora["new"]], limits)


def text(run: Run, groups: Sequence[str], name: str, scratch: Path) -> dict[str, Artifact]:
    """The stages of one seed on real text: stories260K continued on `name`."""
    seed = run.campaign.seed
    base = adopt(run, "base", STORIES)
    corpora = {}
    for role, folder in (("old", "tinystories"), ("new", name)):
        source = pieces(folder, scratch)
        rows = ingest(run, f"{role}-documents", Ingest(rows="documents", sources=(source,), held_out=0.1))
        corpora[role] = pack(run, f"{role}-corpus", Pack(seed=seed), documents=rows, tokenizer=base)
    arms = [arm for arm in CONTINUED if arm.group in groups and arm.rewarm]
    made = {
        arm: train(run, arm, recipe(arm, 256, 8, 1e-3, steps=40), {"base": base}, corpora)
        for arm in arms
    }  # fmt: skip
    limits = Measure(sequence_length=512, documents=20, seed=seed)
    return judged(run, groups, made, base, [corpora["old"], corpora["new"]], limits)


def recipe(arm: Arm, length: int, batch: int, peak: float, steps: int = 0) -> Continue:
    """An arm's training: a cosine from `peak` to its floor, or constant at the floor."""
    schedule = Warmed(peak=peak, floor=FLOOR, warmup=0.03)
    if not arm.rewarm:
        schedule = Warmed(kind="constant", peak=peak * FLOOR, warmup=0.0)
    return Continue(replay=arm.replay, sequence_length=length, batch_size=batch, steps=steps, epochs=arm.epochs,
                    schedule=schedule)  # fmt: skip


def train(
    run: Run, arm: Arm, how: Continue, starts: Mapping[str, Artifact], corpora: Mapping[str, Artifact]
) -> Artifact:
    """The arm's model."""
    old = [corpora["old"]] if arm.replay else []
    return continue_pretraining(run, slug(arm.label), how, model=starts[arm.start], new=corpora[arm.text], old=old)


def judged(
    run: Run,
    groups: Sequence[str],
    made: Mapping[Arm, Artifact],
    base: Artifact,
    corpora: Sequence[Artifact],
    limits: Measure,
) -> dict[str, Artifact]:
    """A measurement of each group's arms against the base, on old and new text."""
    found = {}
    for group in groups:
        arms = {arm.label: model for arm, model in made.items() if arm.group == group}
        if arms:
            how = limits.model_copy(update={"labels": ("base", *arms), "corpora": ("old", "new")})
            found[group] = measure(run, f"measure-{group}", how, models=[base, *arms.values()], corpora=corpora)
    return found


def pieces(folder: str, scratch: Path) -> Source:
    """A folder of real documents, cut into pieces that end where a paragraph does: few long documents give no interval."""
    path = scratch / f"{folder}.jsonl"
    rows = []
    for file in sorted(locate(f"data/{folder}").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                rows += [{"id": f"{number}-{i}", "text": part} for i, part in enumerate(cut(json.loads(line)["text"]))]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != content:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as whole:  # others may be reading
            whole.write(content)
        os.replace(whole.name, path)
    return Source(path=str(path), format="text", sha256=hashlib.sha256(content).hexdigest())


def cut(whole: str) -> list[str]:
    """Paragraphs put together to pieces of at least PIECE characters; a text no longer than twice that stays whole."""
    if len(whole) <= 2 * PIECE:
        return [whole]
    found, held = [], ""
    for paragraph in whole.split("\n\n"):
        held = f"{held}\n\n{paragraph}" if held else paragraph
        if len(held) >= PIECE:
            found.append(held)
            held = ""
    return [*found, held] if held.strip() else found


def slug(label: str) -> str:
    """A stage's label: letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() or c in " ." else "" for c in label).replace(".", "").split())


def numbers(found: Mapping[str, Artifact]) -> dict[str, dict[str, float]]:
    """Of each arm that is measured: nats and bits on old and new text, and what was forgotten and gained."""
    rows: dict[str, dict[str, float]] = {}
    for artifact in found.values():
        summary = artifact.summary() or {}
        models = summary.get("models", {})
        for label, loss in models.items():
            base = models["base"]
            rows[label] = {
                **{f"{name} nats": loss[name]["nats"] for name in ("old", "new")},
                **{f"{name} bits": loss[name]["bits"] for name in ("old", "new")},
                "mean nats": (loss["old"]["nats"] + loss["new"]["nats"]) / 2,
                "forgetting": loss["old"]["nats"] - base["old"]["nats"],
            }
    return rows


HEADS = ("old nats", "new nats", "mean nats", "forgetting", "old bits", "new bits")


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: each arm's mean over the seeds that have it, +- half its 95 % t-interval."""
    known = ["base", *(arm.label for arm in sorted((*CONTINUED, *SCRATCH, *SMALL), key=_place))]
    labels = sorted({label for rows in seeds for label in rows}, key=known.index)
    lines = [f"| arm | seeds | {' | '.join(HEADS)} |", f"|---|---|{'---|' * len(HEADS)}"]
    for label in labels:
        own = [rows[label] for rows in seeds if label in rows]
        cells = [cell([row[head] for row in own]) for head in HEADS]
        lines.append(f"| {label} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(arm: Arm) -> tuple[int, bool, float]:
    """Continued arms by their share, then those without re-warming, then what begins from nothing, then the small D2."""
    kind = 2 if arm.start == "init" else 3 if arm.text == "small" else 0
    return kind or int(not arm.rewarm), arm.text == "new", arm.replay - arm.epochs * (arm.start == "init")


def cell(values: Sequence[float]) -> str:
    """A mean with half the width of its interval, where there is one."""
    if len(values) < 2 or len(values) not in T975:
        return f"{fmean(values):.3f}"
    half = T975[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):.3f} +- {half:.3f}"


def begin(name: str, seed: int, base: Base, given: Any) -> Run:
    """A run whose stages are done one after another in this process, or only looked up."""
    runtime = Runtime(threads=given.threads)
    campaign = Campaign(name=f"replay-{name.replace('_', '-')}", seed=seed, data=Data(), base=base, runtime=runtime)
    say = lambda label, event: print(f"{name} {seed} {label}: {event['text']}", flush=True) if "text" in event else None
    return Run(campaign, given.store, runtime, mode="plan" if given.show else "direct", listen=say)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("world", "text"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--corpora", nargs="+", default=["peps", "german_law"], help="text: folders of data/")
    parser.add_argument("--scratch", type=Path, default=Path(".roundhouse/replay"))
    parser.add_argument("--store", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    given.store = connect(given.store, Runtime())
    parts = ["world"] if given.part == "world" else given.corpora
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {name: {} for name in parts}
    for group in given.groups:  # coarse arms of every seed first
        for name in parts:
            for seed in given.seeds:
                base = Base(adopt=STORIES) if name != "world" else Base(pretrain=Pretrain(architecture=SHAPE))
                run = begin(name, seed, base, given)
                made = world(run, [group]) if name == "world" else text(run, [group], name, given.scratch)
                found[name].setdefault(seed, {}).update(numbers(made))
    for name, seeds in found.items():
        print(f"\n## {name}\n\n{table(list(seeds.values()))}")


if __name__ == "__main__":
    main()
