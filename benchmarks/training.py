"""Training steps a second on human pairs: packed prefix trees, padded rows, and TRL 1.16, side by side.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16.0 torch==2.13.0
    ROUNDHOUSE_DATA=DIR python -m benchmarks.training [--trl /tmp/trl/bin/python] [--repeats 5] [--threads 1] [--steps 12]

DIR holds data/hh_harmless. A Llama of 5.3M parameters with an 8k vocabulary, batches of 16 pairs, fp32, AdamW; the same
weights, token ids, order and rates on every side; reference log-probs of DPO are precomputed on every side and not timed. The
first two steps are not timed. Seconds are of processor time (other work on the machine disturbs it least; with one thread
on a quiet machine it is the wall time). Medians over interleaved repeats; the spread is of the repeats' ratios.
"""

import argparse
import gzip
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("reward", "dpo", "sft")
PAIRS, WARM, RATE, LIMIT = 16, 2, 1e-4, 512
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 8, "max_position_embeddings": LIMIT}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trl", help="a python that has trl==1.16.0")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--cases", nargs="*", default=CASES)
    options.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        name, case, folder = given.side
        print("RESULT " + json.dumps((trl if name == "trl" else ours)(name, case, Path(folder), given.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), given.steps)
        compare(given, folder)


def compare(given: Any, folder: str) -> None:
    """Run all sides in turn and print the table."""
    sides = {"packed": sys.executable, "padded": sys.executable} | ({"trl": given.trl} if given.trl else {})
    print(f"{platform.processor() or platform.machine()}, {given.threads} thread(s), {given.repeats} repeats\n")
    print("| case | side | pairs/s | packed is faster by | spread | largest difference of a step's loss |")
    print("|---|---|---|---|---|---|")
    for case in given.cases:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(given.repeats):
            for name, python in sides.items():
                found[name].append(side(python, name, case, folder, given.threads))
        packed = found["packed"]
        for name, runs in found.items():
            rate = statistics.median(run["pairs"] / run["seconds"] for run in runs)
            ratios = [run["seconds"] / own["seconds"] for run, own in zip(runs, packed)]
            gap = max(abs(a - b) for a, b in zip(runs[0]["losses"], packed[0]["losses"]))
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(
                f"| {case} | {name} | {rate:.1f} | {statistics.median(ratios):.2f} | {spread} | {gap:.1e} |", flush=True
            )


def side(python: str, name: str, case: str, folder: str, threads: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [python, "-m", "benchmarks.training", "--threads", str(threads), "--side", name, case, folder]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{name} {case} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def prepare(folder: Path, steps: int) -> None:
    """Token ids of the first pairs, and the models they are trained on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    from configs.recipes import Template
    from engine.pretrain import train_tokenizer
    from engine.template import make_chat

    source = Path(os.environ.get("ROUNDHOUSE_DATA", ".")) / "data/hh_harmless"
    file = next(iter(sorted(source.glob("pairs*"))), None)
    if file is None:
        sys.exit(f"{source}: no pairs there; set ROUNDHOUSE_DATA to the folder that holds data/hh_harmless")
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as stream:
        rows = [json.loads(line) for line in stream]
    chat = make_chat(train_tokenizer((row["chosen"] for row in rows), 8192), Template())
    pairs = []
    for row in rows:
        chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
        if chosen[:-1] != rejected[:-1] or not chosen or chosen[-1]["role"] != "assistant":
            continue
        one = {"prompt": chat.prompt_ids(chosen[:-1]), "chosen": chat.response_ids(chosen[-1]["content"]),
               "rejected": chat.response_ids(rejected[-1]["content"])}  # fmt: skip
        if len(one["prompt"]) + max(len(one["chosen"]), len(one["rejected"])) <= LIMIT:
            pairs.append(one)
    (folder / "pairs.json").write_text(json.dumps(pairs[: PAIRS * steps]))
    chat.tokenizer.save_pretrained(folder)
    config = LlamaConfig(**SHAPE, vocab_size=len(chat.tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "policy")
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")


def turns(dialogue: str) -> list[dict[str, str]]:
    """Messages of a Human/Assistant dialogue."""
    parts = re.split(r"\n\n(Human|Assistant): ?", dialogue)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[r], "content": c} for r, c in zip(parts[::2], parts[1::2])]


def ours(name: str, case: str, folder: Path, threads: int) -> dict[str, Any]:
    """Our offline loop on packed or padded rows."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    import methods
    from configs.recipes import Optimizer
    from configs.runtime import Runtime
    from engine.examples import Item
    from engine.job import Job
    from engine.offline import Fit, fit
    from engine.packing import shape_of
    from engine.reference import reference_logps

    torch.set_num_threads(threads)
    kind = AutoModelForSequenceClassification if case == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(folder / ("reward" if case == "reward" else "policy"), attn_implementation="sdpa")
    as_ids = lambda ids: np.array(ids, dtype=np.int32)
    sides = ("chosen",) if case == "sft" else ("chosen", "rejected")
    items = [
        Item(as_ids(p["prompt"]), tuple(as_ids(p[s]) for s in sides), (None,) * len(sides), (1.0, 0.0)[: len(sides)])
        for p in json.loads((folder / "pairs.json").read_text())
    ]
    steps = [list(range(i, i + PAIRS)) for i in range(0, len(items), PAIRS)]
    method, clock = methods.load(case), list[float]()
    fixed = reference_logps(model, items, pad_id=0, rows=PAIRS) if case == "dpo" else None
    rows = lambda step: clock.append(time.process_time()) or steps[step - 1]
    recipe = Optimizer(learning_rate=RATE, schedule="constant", warmup=0, min_warmup_steps=0, weight_decay=0, eps=1e-8,
                       betas=(0.9, 0.999))  # fmt: skip
    plan = Fit(
        model=model, method=method, config=method.Config(margin="none") if case == "reward" else method.Config(),
        optimizer=recipe, steps=len(steps), rows=rows, item=items.__getitem__, pad_id=0,
        reference=(lambda: fixed) if fixed is not None else None, shape=shape_of(model) if name == "packed" else None,
    )  # fmt: skip
    job = Job(stage="train", recipe=None, inputs={}, out=folder, runtime=Runtime())
    fit(job, plan)
    seconds = time.process_time() - clock[WARM]
    return {"seconds": seconds, "pairs": PAIRS * (len(steps) - WARM), "losses": [row["loss"] for row in job.rows]}


def trl(name: str, case: str, folder: Path, threads: int) -> dict[str, Any]:
    """TRL's trainer on the same token ids in the same order."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(threads)
    clock, losses = list[float](), list[float]()

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.append(time.process_time())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    pairs = json.loads((folder / "pairs.json").read_text())
    shared = {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": PAIRS, "num_train_epochs": 1, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "use_cpu": True, "bf16": False, "max_length": LIMIT, "gradient_checkpointing": False, "disable_tqdm": True,
        "dataloader_num_workers": 0, "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if case == "reward":
        kind, arguments, source = RewardTrainer, RewardConfig(**shared), "reward"
        rows = [{"chosen_ids": p["prompt"] + p["chosen"], "rejected_ids": p["prompt"] + p["rejected"]} for p in pairs]
    elif case == "dpo":
        kind, source = DPOTrainer, "policy"
        kind._prepare_dataset = lambda self, dataset, *_: dataset  # it is token ids already
        arguments = DPOConfig(**shared, beta=0.1, precompute_ref_log_probs=True)
        rows = [{"prompt_ids": p["prompt"], "chosen_ids": p["chosen"], "rejected_ids": p["rejected"]} for p in pairs]
    else:
        kind, source = SFTTrainer, "policy"
        arguments = SFTConfig(**shared, completion_only_loss=True, packing=False)
        rows = [
            {"input_ids": p["prompt"] + p["chosen"], "completion_mask": [0] * len(p["prompt"]) + [1] * len(p["chosen"])}
            for p in pairs
        ]
    kind._get_train_sampler = lambda self, dataset=None: SequentialSampler(dataset or self.train_dataset)
    trainer = kind(
        model=str(folder / source), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[Watch()],
    )  # fmt: skip
    trainer.train()
    seconds = time.process_time() - clock[WARM]
    return {"seconds": seconds, "pairs": PAIRS * (len(clock) - WARM), "losses": losses}


if __name__ == "__main__":
    main()
