"""PPO samples a second on human prompts: our online loop and the last PPOTrainer of TRL, side by side.

    python -m venv .venv-trl024 && .venv-trl024/bin/pip install trl==0.24.0 transformers==4.57.6 torch==2.13.0
    ROUNDHOUSE_DATA=DIR python -m benchmarks.ppo --trl .venv-trl024/bin/python [--repeats 5] [--threads 1] [--k 1 4] [--count]

DIR holds data/hh_harmless. Policy, reference, reward model and critic are Llamas of 5.3M parameters with an 8k vocabulary and
the same random weights on both sides, fp32. An iteration: 32 samples, 8 a minibatch, one pass (4 steps of policy and critic).
Both sides get the same prompts, the same limit of new tokens, temperature 1 and an EOS that an untrained policy
hardly ever draws, so that responses are equally long (the table shows it). K > 1: each prompt is asked K times. The
sides take turns at every iteration (benchmarks/turns.py); the first one, with loading the models, is not timed. Seconds
are of processor time (other work on the machine disturbs it least; with one thread on a quiet machine it is the wall
time). Medians over the repeats; the spread is of the repeats' ratios. `--count` counts the GFLOP of matrix products of an
iteration instead: how much less there is to compute.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.training import SHAPE, human_pairs
from benchmarks.turns import Turns, answer, blocks, in_turn, machine, products, ratios

BATCH, MINIBATCH, RATE, PROMPT, RESPONSE, WARM = 32, 8, 1e-5, 192, 48, 1


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trl", help="a python that has trl==0.24.0")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--k", type=int, nargs="*", default=[1, 4])
    options.add_argument("--count", action="store_true")
    options.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        name, k, iterations, folder = given.side
        run = trl if name == "trl" else ours
        turns = Turns(products()) if given.count else Turns()
        answer(run(Path(folder), int(k), given.threads, int(iterations), turns))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), WARM + given.repeats)
        compare(given, folder)


def compare(given: Any, folder: str) -> None:
    """Run both sides in turn and print the table."""
    pythons = {"ours": sys.executable, "trl": given.trl}
    shared = ["-m", "benchmarks.ppo", "--threads", str(given.threads), *["--count"] * given.count, "--side"]
    print(f"{machine(given.threads)}, {given.repeats} repeats of one iteration\n")
    unit, gain = ("GFLOP/sample", "ours has less by") if given.count else ("samples/s", "ours is faster by")
    print(f"| K | side | {unit} | {gain} | spread | tokens a response | KL at the end |")
    print("|---|---|---|---|---|---|---|")
    for k in given.k:
        rest = [str(k), str(WARM + given.repeats), folder]
        commands = {name: [python, *shared, name, *rest] for name, python in pythons.items() if python}
        found = in_turn(commands, given.threads)
        timed = {name: blocks(run["seconds"], WARM, given.repeats) for name, run in found.items()}
        for name, run in found.items():
            median = statistics.median(timed[name])
            rate = median / BATCH if given.count else BATCH / median
            length = statistics.mean(run["lengths"])
            print(f"| {k} | {name} | {rate:.2f} | {ratios(timed[name], timed['ours'])} | {length:.1f} | {run['kl']:.1e} |",
                  flush=True)  # fmt: skip


def prepare(folder: Path, iterations: int) -> None:
    """The prompts as an artifact's folder and as token ids, and the models."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    from engine.models import save_model
    from storage.rows import write_rows

    chat, pairs = human_pairs(PROMPT, whole=False)
    chosen = [(ids, messages) for ids, messages in {tuple(p["prompt"]): p["messages"] for p in pairs}.items()]
    chosen = chosen[: BATCH * iterations]
    (folder / "prompts").mkdir()
    rows = [{"id": str(i), "messages": messages, "category": "c", "is_safety": False, "source": "hh"}
            for i, (_, messages) in enumerate(chosen)]  # fmt: skip
    write_rows(folder / "prompts/rows.parquet", "Prompt", rows)
    (folder / "prompts.json").write_text(json.dumps([ids for ids, _ in chosen]))
    ids = {"bos_token_id": chat.tokenizer.bos_token_id, "eos_token_id": chat.eos_id, "pad_token_id": chat.pad_id}
    config = LlamaConfig(**SHAPE, vocab_size=len(chat.tokenizer), **ids)
    torch.manual_seed(0)
    save_model(AutoModelForCausalLM.from_config(config), chat, folder / "policy", "policy")
    config.num_labels = 1
    save_model(AutoModelForSequenceClassification.from_config(config), chat, folder / "reward", "reward")


def ours(folder: Path, k: int, threads: int, iterations: int, turns: Turns) -> dict[str, Any]:
    """The online stage, in a process set up as a stage's is."""
    from configs.recipes import Limits, Online, Optimizer, Tripwires
    from configs.runtime import Runtime
    from engine import online
    from engine.job import Job
    from engine.run import settle

    class Timed(Job):
        def metrics(self, step: int, values: Any) -> None:
            super().metrics(step, values)
            if step < iterations:
                turns.begin()
            else:
                turns.end()

    runtime = Runtime(threads=threads)
    settle(runtime, seed=0)
    rate = Optimizer(learning_rate=RATE, schedule="constant", warmup=0, min_warmup_steps=0, weight_decay=0)
    recipe = Online(
        method="ppo", iterations=iterations, batch_size=BATCH, minibatch_size=MINIBATCH, k=k, epochs=1, optimizer=rate,
        critic_optimizer=rate, warmup_batches=0, limits=Limits(prompt_tokens=PROMPT, response_tokens=RESPONSE),
        tripwires=Tripwires(on_alarm="record"),
    )  # fmt: skip
    inputs = {"policy": folder / "policy", "rewards": [folder / "reward"], "prompts": folder / "prompts"}
    with tempfile.TemporaryDirectory() as out:
        job = Timed(stage="online", recipe=recipe, inputs=inputs, out=Path(out), runtime=runtime)
        turns.begin()
        online.run(job)
    return {"seconds": turns.seconds, "lengths": [row["response_length"] for row in job.rows], "kl": job.rows[-1]["kl"]}


def trl(folder: Path, k: int, threads: int, iterations: int, turns: Turns) -> dict[str, Any]:
    """TRL's trainer on the same prompts."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import PPOConfig, PPOTrainer

    torch.set_num_threads(threads)
    lengths, kl = list[float](), list[float]()

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step < iterations:
                turns.begin()
            else:
                turns.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "objective/kl" in logs:
                kl.append(float(logs["objective/kl"]))
                lengths.append(RESPONSE - float(logs["val/num_eos_tokens"]) / BATCH)

    card = json.loads((folder / "policy/config.json").read_text())
    source = PreTrainedTokenizerFast(tokenizer_file=str(folder / "policy/tokenizer.json"), padding_side="left")
    source.pad_token, source.eos_token = (
        source.convert_ids_to_tokens(card[n]) for n in ("pad_token_id", "eos_token_id")
    )
    prompts = [ids for ids in json.loads((folder / "prompts.json").read_text()) for _ in range(k)][: BATCH * iterations]
    rows = Dataset.from_list([{"input_ids": ids} for ids in prompts])
    load = lambda kind, name: kind.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="sdpa")
    arguments = PPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=MINIBATCH, gradient_accumulation_steps=BATCH // MINIBATCH,
        num_mini_batches=BATCH // MINIBATCH, num_ppo_epochs=1, total_episodes=BATCH * iterations, learning_rate=RATE,
        lr_scheduler_type="constant", response_length=RESPONSE, temperature=1.0, stop_token="eos", num_sample_generations=0,
        local_rollout_forward_batch_size=BATCH, kl_coef=0.01, gradient_checkpointing=False, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=arguments, processing_class=source, model=load(AutoModelForCausalLM, "policy"),
        ref_model=load(AutoModelForCausalLM, "policy"), reward_model=load(AutoModelForSequenceClassification, "reward"),
        value_model=load(AutoModelForSequenceClassification, "reward"), train_dataset=rows,
        eval_dataset=rows.select(range(2)), callbacks=[Watch()],
    )  # fmt: skip
    turns.begin()
    trainer.train()
    return {"seconds": turns.seconds, "lengths": lengths, "kl": kl[-1]}


if __name__ == "__main__":
    main()
