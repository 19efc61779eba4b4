"""Does a reward model of every kind learn from real data? Each kind trained once, judged on prompts that it has not seen.

    ROUNDHOUSE_DATA=/path/to/data python -m benchmarks.reward_kinds            # all; goes on where it stopped
    ROUNDHOUSE_DATA=/path/to/data python -m benchmarks.reward_kinds --table    # what is known so far

Human pairs (hh_helpful) for the pairwise kinds, answers ranked by people (qa_feedback) for the K-wise one, labelled answers
(steerlm_512) for attributes. All begin as stories260K but the last, a GPT-2 of another size with a tokenizer of its own. Small
models and short texts: that they learn at all is the question, not how well. The stages are the pipeline's own.
"""

import argparse
import json
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GPT2Config

from configs.recipes import Adopt, Ingest, Limits, Optimizer, Reward, Source, Template
from configs.runtime import Runtime
from engine import adopt, ingest, reward
from engine.job import Job
from engine.models import new_model, save_model
from engine.pretrain import train_tokenizer
from engine.template import make_chat

ROOT = Path(__file__).resolve().parent.parent / ".roundhouse" / "reward-kinds"
PLAIN = Template(system="{content}\n", user="{content}\n", assistant="{content}", separator="\n", bos=True)
SOURCES = {
    "hh_helpful": ("preferences", Source(path="data/hh_helpful/pairs.jsonl.gz", format="dialogue", kind="helpfulness")),
    "qa_feedback": ("rankings", Source(path="data/qa_feedback/feedback.jsonl.gz", format="qa-feedback")),
    "steerlm_512": ("rankings", Source(path="data/steerlm_512/rows.jsonl.gz", format="steerlm")),
}


@dataclass(frozen=True)
class Kind:
    """One kind of reward model and what it is tried on."""

    name: str
    data: str
    base: str = "stories260K"
    epochs: float = 1.0
    limits: tuple[int, int] = (96, 64)  # tokens of a prompt: longer ones are dropped; of a response: it is cut
    recipe: dict[str, Any] = field(default_factory=dict)  # fields of configs.recipes.Reward

    @property
    def folder(self) -> str:
        return re.sub("[^a-z0-9]+", "-", self.name.lower())


KINDS = (
    Kind("attributes", "steerlm_512", epochs=3, limits=(320, 160), recipe={"method": "reward-attributes"}),
    Kind("K-wise, 4 answers", "qa_feedback", epochs=2, limits=(64, 384), recipe={"method": "reward-ranking"}),
    Kind("Bradley-Terry", "hh_helpful", recipe={"config": {"margin": "none"}}),
    Kind("pointwise logistic", "hh_helpful", recipe={"method": "reward-pointwise"}),
    Kind("vocabulary logit", "hh_helpful", recipe={"config": {"margin": "none"}, "head": "token", "head_token": "."}),
    Kind("DPO's implicit reward", "hh_helpful", recipe={"method": "dpo"}),
    Kind("another family", "hh_helpful", base="gpt2", recipe={"config": {"margin": "none"}, "reads": "own"}),
)


def made(stage: Any, name: str, recipe: Any, **inputs: Any) -> Path:
    """The folder of one stage's result, computed where it is not there yet."""
    out = ROOT / name
    if not (out / "summary.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):  # its events
            summary = stage.run(Job(name, recipe, inputs, out, Runtime(threads=1)))
        (out / "summary.json").write_text(json.dumps(summary, indent=1))
    return out


def base(name: str, rows: Path) -> Path:
    """A policy to put a head on."""
    if name == "stories260K":
        return made(adopt, name, Adopt(path="models/stories260K", pad_token="<unk>", template=PLAIN))
    folder = ROOT / name
    if not folder.exists():
        texts = (row["chosen"] for row in ingest.read_rows(rows / "rows.parquet", "Preference"))
        chat = make_chat(train_tokenizer(texts, 2000), PLAIN)
        config = GPT2Config(vocab_size=len(chat.tokenizer), n_positions=256, n_embd=96, n_layer=3, n_head=4)
        save_model(new_model(config, seed=1), chat, folder, "policy")
    return folder


def run(kind: Kind) -> dict[str, Any]:
    """Train one; returns what held_out.json says."""
    rows, source = SOURCES[kind.data]
    data = made(ingest, f"data-{kind.data}", Ingest(rows=rows, sources=(source,), max_rejected=0.1))
    prompt, response = kind.limits
    recipe = Reward(
        **{"limits": Limits(prompt_tokens=prompt, response_tokens=response), "own_share": 1.0, "epochs": kind.epochs,
           "batch_size": 16, "held_out": 0.3, "seed": 1, "optimizer": Optimizer(learning_rate=1e-3), **kind.recipe}
    )  # fmt: skip
    found = made(reward, kind.folder, recipe, model=base(kind.base, data), preferences=[data])
    return dict(json.loads((found / "held_out.json").read_text()))


def line(kind: Kind, report: dict[str, Any] | None) -> str:
    """One row of the table: what was found beside what no learning would give."""
    if report is None:
        return f"| {kind.name} | {kind.data} | {kind.base} | not run | | |"
    if levels := report.get("attributes"):
        told = ", ".join(f"{name} {one['error']:.2f} ({one['error_of_mean']:.2f})" for name, one in levels.items())
        count = next(iter(levels.values()))["count"]
        return f"| {kind.name} | {kind.data} | {kind.base} | absolute error (of the mean): {told} | {count} answers |"
    told = f"accuracy {report['accuracy']:.3f} ({report['low']:.3f} to {report['high']:.3f}); chance 0.5"
    return f"| {kind.name} | {kind.data} | {kind.base} | {told} | {report['pairs']} pairs |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Reward models of every kind on real data.")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not os.environ.get("ROUNDHOUSE_DATA"):
        raise SystemExit("ROUNDHOUSE_DATA is not set: want the folder that holds data/ and models/")
    print("| kind | data | begins as | held out | |\n|---|---|---|---|---|")
    for kind in KINDS:
        known = ROOT / kind.folder / "held_out.json"
        report = None if arguments.table else run(kind)
        if arguments.table and known.exists():
            report = json.loads(known.read_text())
        print(line(kind, report), flush=True)


if __name__ == "__main__":
    main()
