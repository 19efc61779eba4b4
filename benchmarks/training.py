"""Training steps a second on human pairs: packed prefix trees, padded rows, and TRL 1.16, side by side.

    python -m venv .venv-trl && .venv-trl/bin/pip install trl==1.16.0 torch==2.13.0
    ROUNDHOUSE_DATA=DIR python -m benchmarks.training [--trl .venv-trl/bin/python] [--repeats 5] [--steps 2] [--threads 1]

DIR holds data/hh_harmless. A Llama of 5.3M parameters with an 8k vocabulary, batches of 16 pairs, fp32, AdamW; the same
weights, token ids, order and rates on every side; reference log-probs of DPO are precomputed on every side and not timed. The
sides take turns at every step (benchmarks/turns.py); the first step is not timed. Seconds are of processor time (other work on
the machine disturbs it least; with one thread on a quiet machine it is the wall time). Medians over the repeats; the spread
is of the repeats' ratios.
"""

import argparse
import gzip
import json
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.turns import Turns, answer, blocks, in_turn, machine, ratios

CASES = ("reward", "dpo", "sft")
PAIRS, WARM, RATE, LIMIT = 16, 1, 1e-4, 512
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 8, "max_position_embeddings": LIMIT}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trl", help="a python that has trl==1.16.0")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--steps", type=int, default=2, help="optimizer steps a repeat")
    options.add_argument("--cases", nargs="*", default=CASES)
    options.add_argument("--sides", nargs="*", default=("packed", "padded", "trl"))
    options.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        name, case, folder = given.side
        answer((trl if name == "trl" else ours)(name, case, Path(folder), given.threads))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), WARM + given.steps * given.repeats)
        compare(given, folder)


def compare(given: Any, folder: str) -> None:
    """Run all sides in turn and print the table."""
    pythons = {name: given.trl if name == "trl" else sys.executable for name in given.sides}
    shared = ["-m", "benchmarks.training", "--threads", str(given.threads), "--side"]
    print(f"{machine(given.threads)}, {given.repeats} repeats of {given.steps} steps\n")
    print("| case | side | pairs/s | packed is faster by | spread | largest difference of a step's loss |")
    print("|---|---|---|---|---|---|")
    for case in given.cases:
        commands = {name: [python, *shared, name, case, folder] for name, python in pythons.items() if python}
        found = in_turn(commands, given.threads)
        timed = {name: blocks(run["seconds"], WARM, given.repeats) for name, run in found.items()}
        for name, run in found.items():
            rate = PAIRS * given.steps / statistics.median(timed[name])
            gap = max(abs(a - b) for a, b in zip(run["losses"], found["packed"]["losses"], strict=True))
            print(f"| {case} | {name} | {rate:.1f} | {ratios(timed[name], timed['packed'])} | {gap:.1e} |", flush=True)


def human_pairs(limit: int, *, whole: bool) -> tuple[Any, list[dict[str, Any]]]:
    """A chat with a tokenizer made of the texts, and the pairs as token ids.

    limit: most tokens of a prompt, or (whole) of a prompt with the longer of its responses.
    """
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
        chosen, rejected = messages_of(row["chosen"]), messages_of(row["rejected"])
        if chosen[:-1] != rejected[:-1] or not chosen or chosen[-1]["role"] != "assistant":
            continue
        one = {"messages": chosen[:-1], "prompt": chat.prompt_ids(chosen[:-1]),
               "chosen": chat.response_ids(chosen[-1]["content"]),
               "rejected": chat.response_ids(rejected[-1]["content"])}  # fmt: skip
        longer = max(len(one["chosen"]), len(one["rejected"])) if whole else 0
        if len(one["prompt"]) + longer <= limit:
            pairs.append(one)
    return chat, pairs


def prepare(folder: Path, steps: int) -> None:
    """Token ids of the first pairs, and the models they are trained on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    chat, pairs = human_pairs(LIMIT, whole=True)
    (folder / "pairs.json").write_text(json.dumps(pairs[: PAIRS * steps]))
    chat.tokenizer.save_pretrained(folder)
    config = LlamaConfig(**SHAPE, vocab_size=len(chat.tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "policy")
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")


def messages_of(dialogue: str) -> list[dict[str, str]]:
    """Messages of a Human/Assistant dialogue."""
    parts = re.split(r"\n\n(Human|Assistant): ?", dialogue)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[r], "content": c} for r, c in zip(parts[::2], parts[1::2])]


def ours(name: str, case: str, folder: Path, threads: int) -> dict[str, Any]:
    """Our offline loop on packed or padded rows."""
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    import methods
    from configs.recipes import Optimizer
    from configs.runtime import Runtime
    from engine.examples import Item
    from engine.job import Job
    from engine.offline import Fit, fit
    from engine.packing import shape_of
    from engine.reference import reference_logps
    from engine.run import settle

    settle(Runtime(threads=threads), seed=0)
    kind = AutoModelForSequenceClassification if case == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(folder / ("reward" if case == "reward" else "policy"), attn_implementation="sdpa")
    as_ids = lambda ids: np.array(ids, dtype=np.int32)
    sides = ("chosen",) if case == "sft" else ("chosen", "rejected")
    items = [
        Item(as_ids(p["prompt"]), tuple(as_ids(p[s]) for s in sides), (None,) * len(sides), (1.0, 0.0)[: len(sides)])
        for p in json.loads((folder / "pairs.json").read_text())
    ]
    steps = [list(range(i, i + PAIRS)) for i in range(0, len(items), PAIRS)]
    method, turns = methods.load(case), Turns()
    fixed = reference_logps(model, items, pad_id=0, rows=PAIRS) if case == "dpo" else None
    rows = lambda step: turns.begin() or steps[step - 1]
    recipe = Optimizer(learning_rate=RATE, schedule="constant", warmup=0, min_warmup_steps=0, weight_decay=0, eps=1e-8,
                       betas=(0.9, 0.999))  # fmt: skip
    plan = Fit(
        model=model, method=method, config=method.Config(margin="none") if case == "reward" else method.Config(),
        optimizer=recipe, steps=len(steps), rows=rows, item=items.__getitem__, pad_id=0,
        reference=(lambda: fixed) if fixed is not None else None, shape=shape_of(model) if name == "packed" else None,
    )  # fmt: skip
    job = Job(stage="train", recipe=None, inputs={}, out=folder, runtime=Runtime())
    fit(job, plan)
    turns.end()
    return {"seconds": turns.seconds, "losses": [row["loss"] for row in job.rows]}


def trl(name: str, case: str, folder: Path, threads: int) -> dict[str, Any]:
    """TRL's trainer on the same token ids in the same order."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(threads)
    turns, losses = Turns(), list[float]()

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

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
    turns.end()
    return {"seconds": turns.seconds, "losses": losses}


if __name__ == "__main__":
    main()
