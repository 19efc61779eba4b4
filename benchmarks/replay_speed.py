"""What packing costs beside the tokenizer, and what replay costs a training step. Both as ratios of interleaved runs.

    ROUNDHOUSE_DATA=DIR python -m benchmarks.replay_speed [--repeats 7] [--threads 1]

DIR holds models/stories260K and data/. Packing is the whole stage, from Parquet to shards on disk, against nothing but the
tokenizers library's fastest call on the same texts in the same batches. Training is the same run with and without a quarter
replayed. Seconds are of processor time, which other work on the machine disturbs least; medians over the repeats, the spread
is of the repeats' ratios.
"""

import argparse
import contextlib
import gzip
import io
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.replay import STORIES
from configs import Runtime
from configs.continuing import Continue, Pack, Warmed
from configs.load import locate
from engine import adopt, continuing, pack
from engine.corpus import batches, encode
from engine.job import Job
from engine.template import load_chat
from storage.rows import write_rows

STEPS = 24
TRAINING = Continue(sequence_length=128, batch_size=8, steps=STEPS, replay=0.25, schedule=Warmed(peak=1e-3))


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        bench = Bench(Path(scratch), stack)
        packing = bench.turns(given.repeats, bench.tokenise, bench.pack)
        report("tokenising and packing, MB/s", "library alone", "packed", packing, bench.bytes / 1e6)
        plain, mixed = (lambda r=r: bench.train(r) for r in (0.0, TRAINING.replay))
        training = bench.turns(given.repeats, plain, mixed)
        tokens = STEPS * TRAINING.batch_size * TRAINING.sequence_length
        report("training, tokens/s", "no replay", "a quarter replayed", training, tokens)


class Bench:
    """Texts, a model and packed corpora in a scratch folder."""

    def __init__(self, scratch: Path, stack: ExitStack) -> None:
        self.scratch, self.stack, self.count = scratch, stack, 0
        self.base = self.stage(adopt, STORIES)[0]
        self.corpora = {}
        for name in ("peps", "tinystories"):
            rows = texts(name)
            write_rows(scratch / name / "rows.parquet", "Document", rows)
            self.corpora[name] = self.stage(pack, Pack(), documents=scratch / name, tokenizer=self.base)[0]
        self.chat, self.rows = load_chat(self.base), texts("peps")
        self.bytes = sum(len(row["text"].encode()) for row in self.rows)

    def stage(self, module: Any, recipe: Any, **inputs: Any) -> tuple[Path, float]:
        """Do a stage's work here; returns its folder and its processor seconds."""
        self.count += 1
        out = self.scratch / f"{self.count:03d}"
        out.mkdir()
        job = Job(stage=module.__name__, recipe=recipe, inputs=inputs, out=out, runtime=Runtime())
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            module.run(job)
        return out, time.process_time() - began

    def tokenise(self) -> float:
        """The tokenizers library and nothing else."""
        backend = self.chat.tokenizer.backend_tokenizer
        groups = [[row["text"] for row in group] for group in batches(self.rows, pack.CHARS)]
        assert len(encode(self.chat, groups[0][:1])) == 1  # sets the tokenizer up as packing does
        began = time.process_time()
        for group in groups:
            backend.encode_batch_fast(group, add_special_tokens=False)
        return time.process_time() - began

    def pack(self) -> float:
        """The stage as a campaign runs it."""
        return self.stage(pack, Pack(), documents=self.scratch / "peps", tokenizer=self.base)[1]

    def train(self, replay: float) -> float:
        """The training stage, with its loading and saving."""
        recipe = TRAINING.model_copy(update={"replay": replay})
        inputs = {"model": self.base, "new": self.corpora["peps"], "old": [self.corpora["tinystories"]]}
        return self.stage(continuing, recipe, **inputs)[1]

    @staticmethod
    def turns(repeats: int, first: Callable[[], float], second: Callable[[], float]) -> list[tuple[float, float]]:
        """Seconds of both, in turn and in changing order, after one round to warm up."""
        first(), second()
        found = []
        for turn in range(repeats):
            if turn % 2:
                late = second()
                found.append((first(), late))
            else:
                found.append((first(), second()))
        return found


def texts(name: str) -> list[dict[str, Any]]:
    """The documents of a folder of data/."""
    rows = []
    for file in sorted(locate(f"data/{name}").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows += [{"id": str(i), "text": json.loads(line)["text"], "source": name} for i, line in enumerate(lines)]
    return rows


def report(title: str, first: str, second: str, seconds: list[tuple[float, float]], amount: float) -> None:
    """One line: medians of both, and the ratio of their speeds with its spread over the repeats."""
    a, b = (median(pair[i] for pair in seconds) for i in (0, 1))
    ratios = sorted(x / y for x, y in seconds)
    print(f"{title}: {first} {amount / a:.3g}, {second} {amount / b:.3g}, ratio {a / b:.3f} "
          f"({ratios[0]:.3f} .. {ratios[-1]:.3f} over {len(ratios)})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
