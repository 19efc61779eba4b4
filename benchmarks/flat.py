"""Rows are streamed: `python -m benchmarks.flat [--prompts 1000 10000 100000] [--repeats 3]`.

Samples one response of at most 4 tokens to each prompt from a very small model, scores it under one reward model, selects, and
trains the model on as many examples and a reward model on as many pairs, each in a process of its own, at rising numbers of
prompts. Peak memory must stay where it is and processor time a prompt too: the table has the peak, how far it is above the
process at its start, and milliseconds a prompt, medians of repeats that take turns, with their spread.
"""

import argparse
import contextlib
import functools
import io
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from benchmarks.reliability.events import in_child
from configs.recipes import Limits, Reward, Sample, Score, Select, Template, Train
from configs.runtime import Runtime
from engine import forkserver
from storage import Ref, open_store
from storage.rows import write_rows

MODEL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
CHAIN = {"sample", "score", "select"}  # each reads what the one before it has written
LIMITS = Limits(prompt_tokens=32, response_tokens=4)


def prompts(count: int) -> Iterator[dict[str, Any]]:
    """So many different prompts of about the same length."""
    for number in range(count):
        text = f"say the number {number:06d} once"
        yield {
            "id": f"p{number:06d}", "messages": [{"role": "user", "content": text}], "category": "numbers",
            "is_safety": False, "source": "flat",
        }  # fmt: skip


def pairs(count: int) -> Iterator[dict[str, Any]]:
    """A pair of answers to each prompt."""
    for number, row in enumerate(prompts(count)):
        prompt = {name: row[name] for name in ("messages", "category", "is_safety", "source")}
        yield {**prompt, "prompt_id": row["id"], "chosen": f"once {number}", "rejected": f"twice {number}", "grade": 1,
               "kind": "helpfulness", "annotator": "flat"}  # fmt: skip


def examples(count: int) -> Iterator[dict[str, Any]]:
    """An answer to each prompt."""
    for number, row in enumerate(prompts(count)):
        yield {**row, "messages": [*row["messages"], {"role": "assistant", "content": f"once {number}"}]}


INPUTS = (("prompts", "Prompt", prompts), ("examples", "Example", examples), ("pairs", "Preference", pairs))


def models(home: Path) -> None:
    """A random policy and a random reward model in `home`."""
    from engine.models import new_llama, reward_from_policy, save_model
    from engine.pretrain import train_tokenizer
    from engine.template import make_chat

    texts = [row["messages"][0]["content"] for row in prompts(1000)]
    chat = make_chat(train_tokenizer(texts, 300), Template())
    save_model(new_llama(MODEL, chat, 0), chat, home / "policy", "policy")
    save_model(reward_from_policy(home / "policy", Runtime(), 0), chat, home / "reward", "reward")


def stages(home: Path, count: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Recipe and inputs of the stages at one number of prompts, in their order."""
    folder = home / str(count)
    return {
        "sample": (
            Sample(prompts=count, k=1, temperature=1.0, limits=LIMITS),
            {"policy": home / "policy", "prompts": folder / "prompts"},
        ),
        "score": (Score(limits=LIMITS), {"rewards": [home / "reward"], "samples": [folder / "sample"]}),
        "select": (Select(), {"scored": [folder / "score"]}),
        "train": (
            Train(epochs=1.0, batch_size=256, limits=LIMITS),
            {"model": home / "policy", "rows": [folder / "examples"]},
        ),
        "reward": (
            Reward(batch_size=256, own_share=1.0, limits=LIMITS),
            {"model": home / "policy", "preferences": [folder / "pairs"]},
        ),
    }


def work(home: Path, count: int, stage: str, out: IO[str]) -> None:
    """One stage in this process; writes its line of the table."""
    import importlib

    from engine.job import Job
    from engine.run import settle

    settle(Runtime(threads=1), seed=0)
    recipe, inputs = stages(home, count)[stage]
    folder = home / str(count) / stage
    folder.mkdir()
    saves = open_store(home / "store").save_points(Ref("rows", stage, f"{count:016x}"))
    job = Job(stage, recipe, inputs, folder, Runtime(), saves=saves)
    start, began = _peak(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(f"engine.{stage}").run(job)
        job.finish()
    seconds = time.process_time() - began
    json.dump({"peak": _peak(), "above": _peak() - start, "each": 1000 * seconds / count}, out)
    out.flush()


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(home: Path, count: int, stage: str) -> dict[str, float]:
    """One stage in a process of its own, as if it had never been done."""
    shutil.rmtree(home / str(count) / stage, ignore_errors=True)
    shutil.rmtree(home / "store", ignore_errors=True)
    with tempfile.TemporaryFile("w+") as out:
        if in_child(functools.partial(work, home, count, stage, out)):
            raise RuntimeError(f"{stage} of {count} prompts failed")
        out.seek(0)
        return dict(json.load(out))


def line(stage: str, count: int, found: list[dict[str, float]], first: float) -> str:
    """Of the table: medians; milliseconds also as a multiple of those of the smallest number of prompts."""
    peak, above, each = (statistics.median(one[what] for one in found) for what in ("peak", "above", "each"))
    spread = f"{min(one['each'] for one in found):.3f} to {max(one['each'] for one in found):.3f}"
    return f"| {stage} | {count} | {peak:.0f} MiB | {above:.0f} MiB | {each:.3f} ms ({spread}) | {each / first:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument(
        "--stages",
        nargs="*",
        default=["sample", "score", "select", "train", "reward"],
        help="to measure; what they read is made once",
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    forkserver.preload()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        assert in_child(functools.partial(models, home)) == 0
        for count in options.prompts:
            for name, kind, rows in INPUTS:
                write_rows(home / str(count) / name / "rows.parquet", kind, rows(count))
        for turn in range(options.repeats):
            for count in options.prompts:
                for stage in stages(home, count):
                    needed = turn == 0 and stage in CHAIN and not CHAIN.isdisjoint(options.stages)
                    if needed or stage in options.stages:
                        found.setdefault((stage, count), []).append(measure(home, count, stage))
                        print(turn, stage, count, found[stage, count][-1], file=sys.stderr)
    print(
        "| stage | prompts | peak memory | above its start | CPU a prompt | of the first |\n|---|---|---|---|---|---|"
    )
    for stage in options.stages:
        first = statistics.median(one["each"] for one in found[stage, options.prompts[0]])
        for count in options.prompts:
            print(line(stage, count, found[stage, count], first))
    return 0


if __name__ == "__main__":
    sys.exit(main())
