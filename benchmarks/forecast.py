"""What `roundhouse plan` forecasts against what campaigns took, stage by stage: `python -m benchmarks.forecast FOLDER`.

Ten small campaigns of different models, methods, lengths and batch sizes. Of each, first the calibration (the campaign in
small), then the campaign, stage after stage, in processes that note the length of every sequence they train on, sample or
score. The forecast is given these lengths and row counts; FLOPs are compared with what torch's own counter says of each
noted sequence by itself (benchmarks/flop_truth.py). FOLDER keeps what is done: the command can be ended and given again.

`--table` only prints the table of what is there; `--only NAME ..` runs some of the campaigns; `--again` forecasts anew, by this
code, what is finished there (under the code it ran with), and runs nothing.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks.flop_truth import Truth, note_lengths
from benchmarks.reliability.events import in_child
from benchmarks.reliability.forks import Fork
from cli.calibration import Costs, calibrate, estimate, read_costs
from cli.costs import Lengths
from cli.forecast import steps_of
from cli.reads import Reads, architecture_of, expected, inputs_of, reads_of
from configs import Campaign
from configs.load import FOLDER, check, resolve
from configs.recipes import Online, Reward, Train
from engine import forkserver
from flows.rounds import align
from storage import open_store
from tasks import Artifact, Run, launch

COLUMNS = ("steps", "tokens", "flops", "stored", "memory", "cpu")
BOUNDS = {"steps": 0.02, "tokens": 0.02, "flops": 0.02, "stored": 0.02, "memory": 0.15, "cpu": 0.25}
WIDE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
LARGE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
LORA = {"rank": 4, "alpha": 8.0, "targets": "linear"}
PREFERENCES = {"method": "dpo", "rows": "preferences", "start": "accepted"}
# Changes of the common campaign below, by dotted place.
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"base.pretrain.architecture": WIDE},
    "large": {"base.pretrain.architecture": LARGE, "base.pretrain.tokenizer.vocab_size": 512},
    "untied": {"base.pretrain.architecture.tie_word_embeddings": False, "base.pretrain.tokenizer.vocab_size": 600},
    "long": {"limits.response_tokens": 32, "base.pretrain.sequence_length": 96},
    "batches": {"sft.batch_size": 32, "train.batch_size": 24, "base.pretrain.batch_size": 16},
    "micro-batches": {"runtime.train_rows": 4, "runtime.score_rows": 8, "runtime.sample_rows": 16},
    "lora": {"sft.lora": LORA, "train.lora": LORA, "online.lora": LORA},
    "dpo": {"rounds": [PREFERENCES, {"method": "ppo", "annotate": "none", "reward": "keep"}]},
    "grpo": {"rounds": [{"method": "rejection"}, {"method": "grpo", "annotate": "none", "reward": "keep"}],
             "online.preset": None, "online.k": 4},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "data.documents": [{"world": "documents", "count": 500}],
    "data.demonstrations": [{"world": "demonstrations", "count": 500}],
    "data.prompts": [{"world": "prompts", "count": 300}],
    "base.pretrain.steps": 90, "sft.epochs": 1.5, "train.epochs": 2.0,
    "annotate.prompts": 160, "sample.prompts": 80, "probe.prompts": 24, "evaluate.prompts": 60,
    "online.iterations": 6,
    "runtime": {"slots": 1, "threads": 1, "sample_rows": 32, "score_rows": 32, "save_seconds": 3600.0},
}  # fmt: skip


def campaign(name: str) -> Campaign:
    """One of the campaigns, resolved as the loader does it."""
    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    for place, value in {**COMMON, **CAMPAIGNS[name]}.items():
        *path, last = place.split(".")
        section = raw
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
        if value is None:
            del section[last]
    return resolve(check({**raw, "name": name}, name), require_data=True)


def run(name: str, folder: Path, before: list[dict[str, Any]]) -> None:
    """Calibrate, run the campaign noting lengths, and write FOLDER/NAME.json: forecast and truth of every stage.

    before: what is there already, whose truth holds.
    """
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    config = campaign(name)
    plan = _lay_out(config, home / "store", "plan")
    calibrate(plan, home / "small", home / "costs.json")
    costs = json.loads((home / "costs.json").read_text())["costs"]
    launch.stop_all()  # the next stages are forks of a process that notes
    note_lengths(home / "lengths")
    launch.use(Fork)
    done = _lay_out(config, home / "store", "direct")
    launch.stop_all()
    real = {line["label"]: line["real"] for line in before}
    stages = [
        _line(a, done, read_costs(costs), _noted(home, a), real.get(label)) for label, a in done.artifacts.items()
    ]
    (folder / f"{name}.json").write_text(json.dumps([line for line in stages if line], indent=1) + "\n")


def _lay_out(config: Campaign, store: Path, mode: Any) -> Run:
    found = Run(config, open_store(store), config.runtime, mode=mode)
    align(found)
    return found


def _noted(home: Path, artifact: Artifact) -> list[dict[str, Any]]:
    """The lengths noted by the process that made an artifact: [{kind, prompt, response, count}]."""
    path = home / "lengths" / f"{artifact.ref.key.replace('/', '-')}.json"
    return json.loads(path.read_text()) if path.exists() else []


def _line(
    artifact: Artifact, done: Run, costs: Costs, noted: list[dict[str, Any]], real: dict[str, Any] | None
) -> dict[str, Any]:
    """Forecast and truth of one stage."""
    found = estimate(artifact, done.runtime, costs, given(artifact, noted))
    guess = {"steps": found.steps, "tokens": found.tokens, "flops": found.flops, "stored": found.stored,
             "memory": found.memory, "cpu": found.cpu_seconds or 0.0}  # fmt: skip
    real = _truth(artifact, noted) if real is None else real
    return {"label": artifact.label, "work": artifact.stage.work, "real": real, "forecast": guess}


def _truth(artifact: Artifact, noted: list[dict[str, Any]]) -> dict[str, Any]:
    """What a stage took: by its record, and FLOPs by torch's count of every sequence that it noted."""
    made, architecture = artifact.made(), architecture_of(artifact)
    assert made is not None
    record, recipe = made.manifest.record, artifact.stage.recipe
    online = isinstance(recipe, Online)
    truth = Truth(dict(architecture), getattr(recipe, "lora", None), online=online) if architecture else None
    tokens = sum(one["response"] * one["count"] for one in noted if one["kind"] in ("train", "reward", "sample"))
    return {
        "steps": made.summary.get("steps", made.summary.get("policy_steps", 0)),
        "tokens": made.summary["tokens"] if online else tokens,
        "flops": sum(truth.flops(**one) for one in noted) if truth else 0,
        "stored": made.manifest.bytes,
        "memory": record["peak_bytes"],
        "cpu": record["cpu_seconds"],
    }


def given(artifact: Artifact, noted: list[dict[str, Any]]) -> Reads | None:
    """Rows and lengths of a stage, from what it noted; None where no model was at work."""
    pairs: dict[str, Counter[tuple[int, int]]] = {}
    for one in noted:
        pairs.setdefault(one["kind"], Counter())[one["prompt"], one["response"]] += one["count"]
    learned, sampled = pairs.get("train") or pairs.get("reward"), pairs.get("sample")
    rows = learned or sampled or sum(pairs.values(), Counter())
    if not rows:
        return None
    guess, count = expected(artifact), rows.total()
    if artifact.stage.work == "certify":
        return reads_of(artifact, artifact.summary() or {}, mean(rows))
    recipe = artifact.stage.recipe
    if isinstance(
        recipe, Online
    ):  # every rollout of an iteration is learned from once an epoch, those of the warm-up not
        assert sampled is not None
        warm = sampled - _part(rows, recipe.epochs)
        return replace(guess, lengths=mean(rows), beside=(warm.total(), mean(warm or rows)))
    if (
        artifact.stage.work == "evaluate"
    ):  # policy and reference read each response to a prompt, none to an extra question
        asked = _part(pairs["read"], 2)
        extra = rows - asked
        scored = mean(pairs["score"]) if "score" in pairs else None
        beside = (extra.total(), mean(extra or asked))
        return replace(guess, lengths=mean(asked), rows=asked.total(), beside=beside, scored=scored)
    if isinstance(recipe, Reward):
        guess = replace(
            guess, beside=(pairs["score"].total(), mean(pairs["score"])) if "score" in pairs else (0, mean(rows))
        )
    return replace(guess, lengths=mean(rows), rows=_rows(artifact, guess, count))


def _part(pairs: Counter[tuple[int, int]], times: int) -> Counter[tuple[int, int]]:
    """Sequences that were noted so many times each."""
    return Counter({pair: count // times for pair, count in pairs.items()})


def mean(pairs: Counter[tuple[int, int]]) -> Lengths:
    """The mean lengths of sequences of (prompt, response) tokens."""
    of = lambda value: sum(value(*pair) * count for pair, count in pairs.items()) / pairs.total()
    return Lengths(of(lambda p, r: p), of(lambda p, r: r), of(lambda p, r: (p + r) ** 2))


def _rows(artifact: Artifact, guess: Reads, count: int) -> int:
    """The rows of a stage that has worked on `count` sequences of what it learns from, samples, or else scores."""
    recipe, work = artifact.stage.recipe, artifact.stage.work
    if isinstance(recipe, Train | Reward):
        fits = (n for n in range(1, 2 * guess.rows) if steps_of(recipe, n)[1] * guess.sequences == count)
        return next(fits, guess.rows)
    if work in ("sample", "annotate", "probe"):
        return count // guess.sequences
    if work in ("score", "compare", "matrix"):
        return round(count / max(1, len(inputs_of(artifact, "rewards")) + len(inputs_of(artifact, "judges"))))
    return guess.rows


def table(folder: Path) -> str:
    """Each kind of work: the median of forecast / truth over all its stages, the range, and how many are inside."""
    lines: dict[str, list[dict[str, Any]]] = {}
    files = sorted(folder.glob("*.json"))
    for file in files:
        for line in json.loads(file.read_text()):
            lines.setdefault(line["work"], []).append({**line, "campaign": file.stem})
    out = [
        f"{len(files)} campaigns: {', '.join(file.stem for file in files)}. forecast / truth: median (least to most), inside",
        "",
    ]
    out.append("| work | stages | " + " | ".join(f"{c} ({BOUNDS[c]:.0%})" for c in COLUMNS) + " |")
    out.append("|---|---|" + "---|" * len(COLUMNS))
    for work, found in sorted(lines.items()):
        cells = [_cell([line for line in found if line["real"][c]], c) for c in COLUMNS]
        out.append(f"| {work} | {len(found)} | " + " | ".join(cells) + " |")
    out += ["", "| campaign | " + " | ".join(f"{c}, all stages" for c in COLUMNS if c != "memory") + " |",
            "|---|" + "---|" * (len(COLUMNS) - 1)]  # fmt: skip
    for file in files:
        stages = json.loads(file.read_text())
        total = lambda side, column, stages=stages: sum(line[side][column] for line in stages if line["real"][column])
        cells = [f"{total('forecast', c) / max(1e-9, total('real', c)):.3f}" for c in COLUMNS if c != "memory"]
        out.append(f"| {file.stem} | " + " | ".join(cells) + " |")
    every = [line for found in lines.values() for line in found]
    out += ["", "| a stage's processor seconds | stages | forecast / measured |", "|---|---|---|"]
    for least, most in pairwise((0, 1, 2, 5, math.inf)):
        some = [line for line in every if least <= line["real"]["cpu"] < most]
        span = f"{least} to {most}" if most < math.inf else f"{least} and more"
        out.append(f"| {span} | {len(some)} | {_cell([line for line in some if line['real']['cpu']], 'cpu')} |")
    return "\n".join(out)


def _cell(lines: list[dict[str, Any]], column: str) -> str:
    ratios = sorted(line["forecast"][column] / line["real"][column] for line in lines)
    if not ratios:
        return ""
    inside = sum(abs(ratio - 1) <= BOUNDS[column] for ratio in ratios)
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) {inside}/{len(ratios)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(CAMPAIGNS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if not options.table:
        forkserver.preload()
        for name in options.only:
            there = (folder / f"{name}.json").exists()
            if there == options.again:
                began = time.monotonic()
                before = json.loads((folder / f"{name}.json").read_text()) if there else []
                code = in_child(lambda name=name, before=before: _one(name, folder, before))
                print(
                    f"{name}: {'done' if code == 0 else f'exit code {code}'} in {time.monotonic() - began:.0f} s",
                    flush=True,
                )
    print(table(folder))
    return 0


def _one(name: str, folder: Path, before: list[dict[str, Any]]) -> None:
    launch.use(Fork)
    run(name, folder, before)


if __name__ == "__main__":
    sys.exit(main())
