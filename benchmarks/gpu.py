"""One GPU in under eight minutes: how much of the device training uses, the sampler, a PPO iteration, memory.

    python -m benchmarks.gpu                # a Llama of 1.1B parameters, bf16 autocast
    python -m benchmarks.gpu --tiny --device cpu    # a toy shape: shows that the program runs, its numbers mean nothing

Needs nothing but this project: weights are random, rows are made up. Printed are
- the rate of one large bf16 matrix product, the ceiling that the rest is held against;
- SFT and reward-model training by engine.offline: FLOPs of the work (6 for each weight of a matrix and token, attention,
  the output layer where a token is predicted; shared prompts once; nothing for padding) a second, as a share of that rate;
  with the masks of `runtime.attention: dense` and, on a GPU, `flex`;
- useful tokens a second of engine.generate and of transformers.generate, K = 8, every response at its full length;
- where the time of an iteration of PPO goes, by engine.online itself, and its FLOPs;
- peak memory of the device beside cli.costs, which `roundhouse plan` forecasts by.
FLOPs count attention as the forecast does: 4 for every token, key and channel, causal or not.
The device is waited for before every reading of the clock. Medians; the spread is from the fastest to the slowest repeat.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import methods
from benchmarks.gpu_device import FULL, TOY, Device, Sizes, made, memory, sampled_by
from benchmarks.gpu_ppo import ppo
from cli.costs import Lengths, activation_bytes, sizes_of, training_bytes
from configs.recipes import Optimizer
from configs.runtime import Runtime
from engine.examples import Item
from engine.generate import generate
from engine.job import Job
from engine.offline import Fit, fit
from engine.packing import shape_of
from engine.run import settle

K = 8
HEADING = """| training | tokens/s | TFLOP/s | of the matrix rate | spread | peak, forecast in GB, ratio |
|---|---|---|---|---|---|"""


def matrix_rate(device: Device, size: int) -> float:
    """FLOPs a second of a bf16 product of two square matrices, the best of 20."""
    a, b = (torch.randn(size, size, device=device.name, dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(23):
        began = device.now()
        a @ b
        found.append(device.now() - began)
    return float(2 * size**3 / min(found[3:]))


def training(device: Device, sizes: Sizes, case: str, ceiling: float, attention: Literal["dense", "flex"]) -> str:
    """One line: SFT or a reward model, by the loop that stages use, under a runtime's `attention`."""
    draw = np.random.default_rng(0)
    ids = lambda n: draw.integers(3, sizes.shape["vocab_size"], n, dtype=np.int32)
    sides = 1 if case == "sft" else 2
    count = sizes.rows // sides * sizes.steps
    items = [
        Item(ids(sizes.prompt), tuple(ids(sizes.response) for _ in range(sides)), (None,) * sides, (1.0, 0.0)[:sides])
        for _ in range(count)
    ]
    kind = AutoModelForCausalLM if case == "sft" else AutoModelForSequenceClassification
    model = made(kind, sizes.shape, device, torch.float32, {"dense": "sdpa", "flex": "flex_attention"}[attention])
    step, clock, method = sizes.rows // sides, list[float](), methods.load(case)

    def rows(number: int) -> list[int]:
        clock.append(device.now())
        return list(range((number - 1) * step, number * step))

    plan = Fit(
        model=model, method=method, config=method.Config(margin="none") if case == "reward" else method.Config(),
        optimizer=Optimizer(learning_rate=1e-5, warmup=0, min_warmup_steps=0), steps=sizes.steps, rows=rows,
        item=items.__getitem__, pad_id=0, dtype="bfloat16", shape=shape_of(model),
    )  # fmt: skip
    device.forget_peak()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # what a job tells
        runtime = Runtime(device=device.name, train_rows=sizes.micro, attention=attention)
        fit(Job(stage="train", recipe=None, inputs={}, out=Path(folder), runtime=runtime), plan)
    clock.append(device.now())
    seconds = [b - a for a, b in pairwise(clock[2:])]  # the first two steps warm up
    own = sizes_of(sizes.shape, reward=case == "reward")
    lengths = Lengths.fixed(sizes.prompt, sides * sizes.response)  # a shared prompt once
    pairs = (sizes.prompt + sizes.response) ** 2 * sides - (sides - 1) * sizes.prompt**2  # who attends to whom, squared
    outputs = sizes.response if case == "sft" else sides
    flops = step * own.learning(Lengths(lengths.prompt, lengths.response, pairs), outputs)
    held = training_bytes(own.parameters, own.parameters, "bfloat16").total
    active = activation_bytes(own, sizes.micro / sides, lengths, outputs, "bfloat16")
    rate, spread = flops / statistics.median(seconds), [flops / one / ceiling for one in (max(seconds), min(seconds))]
    tokens = step * lengths.tokens / statistics.median(seconds)
    return (
        f"| {case}, {attention} | {tokens:,.0f} | {rate / 1e12:.2f} | {rate / ceiling:.1%} | "
        f"{spread[0]:.1%} to {spread[1]:.1%} | {memory(device.peak(), held + active)} |"
    )


def sampler(device: Device, sizes: Sizes, repeats: int) -> list[str]:
    """Two lines: useful tokens a second, ours and transformers', interleaved."""
    model = made(AutoModelForCausalLM, sizes.shape, device, torch.bfloat16)
    decoder = sampled_by(model)
    draw = np.random.default_rng(1)
    prompts = [draw.integers(3, sizes.shape["vocab_size"], sizes.prompt).tolist() for _ in range(sizes.prompts)]
    tokens = sizes.prompts * K * sizes.limit
    never = type("Chat", (), {"eos_id": -1})

    def ours() -> None:
        asked = [(prompt, (str(i), k)) for i, prompt in enumerate(prompts) for k in range(K)]
        generate(model, never, [p for p, _ in asked], [key for _, key in asked], seed=0, stream="benchmark",
                 temperature=1.0, max_new_tokens=sizes.limit, rows=len(asked))  # fmt: skip

    def theirs() -> None:
        ids = torch.tensor(prompts, device=device.name)
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                       num_return_sequences=K, max_new_tokens=sizes.limit, eos_token_id=None, pad_token_id=0)  # fmt: skip

    ours_name = f"engine.generate, {decoder}"
    took: dict[str, list[float]] = {ours_name: [], "transformers.generate": []}
    for turn in range(repeats + 1):
        for name, run in zip(took, (ours, theirs)):
            began = device.now()
            run()
            if turn:  # the first one warms up
                took[name].append(device.now() - began)
    ratios = [b / a for a, b in zip(*took.values())]
    first = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        f"| {name} | {tokens / statistics.median(seconds):,.0f} | {first if name == ours_name else '1'} |"
        for name, seconds in took.items()
    ]


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    device, sizes = Device(given.device), TOY if given.tiny else FULL
    if device.name == "cpu" and not given.tiny:
        raise SystemExit("no CUDA device here; --tiny --device cpu shows that the program runs")
    transformers.utils.logging.set_verbosity_error()
    name = torch.cuda.get_device_name() if device.name == "cuda" else "CPU, numbers mean nothing"
    settle(Runtime(device=device.name, threads=torch.get_num_threads()), seed=0)  # as in every stage
    began = time.monotonic()
    ceiling = matrix_rate(device, sizes.matrix)
    print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"bf16 product of {sizes.matrix} x {sizes.matrix}: {ceiling / 1e12:.2f} TFLOP/s\n")
    print(HEADING)
    for case in ("sft", "reward"):
        print(training(device, sizes, case, ceiling, "dense"), flush=True)
    print("\n| sampler | useful tokens/s | ratio |\n|---|---|---|")
    print(*sampler(device, sizes, given.repeats), sep="\n", flush=True)
    print("\n| PPO, part of an iteration | seconds | share |\n|---|---|---|")
    print(*ppo(device, sizes, given.repeats, ceiling), sep="\n", flush=True)
    if (
        device.name == "cuda"
    ):  # FlexAttention has no backward pass on a CPU; last, because what it compiles takes longest
        print(f"\n{HEADING}")
        for case in ("sft", "reward"):
            print(training(device, sizes, case, ceiling, "flex"), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
