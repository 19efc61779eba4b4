"""One GPU in under eight minutes: how much of the device training uses, the sampler, a PPO iteration, memory.

    python -m benchmarks.gpu                # a Llama of 1.1B parameters, bf16 autocast
    python -m benchmarks.gpu --tiny --device cpu    # a toy shape: shows that the program runs, its numbers mean nothing

Needs nothing but this project: weights are random, rows are made up. Printed are
- the rate of one large bf16 matrix product, the ceiling that the rest is held against;
- SFT and reward-model training by engine.offline: FLOPs of the work (6 for each weight of a matrix and token, attention,
  the output layer where a token is predicted; shared prompts once; nothing for padding) a second, as a share of that rate;
- useful tokens a second of engine.generate and of transformers.generate, K = 8, every response at its full length;
- where the time of an iteration of PPO goes, by engine.online itself;
- peak memory of the device beside cli.costs, which `roundhouse plan` forecasts by.
The device is waited for before every reading of the clock. Medians; the spread is from the fastest to the slowest repeat.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

import methods
from cli.costs import Lengths, activation_bytes, sizes_of, training_bytes
from configs.recipes import Limits, Online, Optimizer, Template
from configs.runtime import Runtime
from engine import online, rollouts
from engine.examples import Item
from engine.generate import generate
from engine.job import Job
from engine.offline import Fit, fit
from engine.packing import shape_of
from engine.run import settle
from storage.rows import write_rows

K, EOS = 8, 2
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048,
         "tie_word_embeddings": True}  # fmt: skip
MEDIUM = {**LARGE, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
TINY = {**LARGE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What is measured: the models' shapes, and how much of everything."""

    shape: dict[str, Any]
    shape_online: dict[str, Any]
    matrix: int  # rows and columns of the product that sets the ceiling
    prompt: int
    response: int
    rows: int  # sequences a step
    micro: int  # of them at a time
    steps: int
    prompts: int  # of the sampler's
    limit: int  # its tokens a response
    batch: int  # rollouts of a PPO iteration


FULL = Sizes(LARGE, MEDIUM, 8192, 256, 256, 64, 16, 8, 32, 256, 128)
TOY = Sizes(TINY, TINY, 128, 16, 16, 8, 4, 4, 4, 16, 16)


class Device:
    """The device's clock and memory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.name == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        if self.name == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes of tensors at most since then; 0 on a CPU, which does not count them."""
        return torch.cuda.max_memory_allocated() if self.name == "cuda" else 0


def matrix_rate(device: Device, size: int) -> float:
    """FLOPs a second of a bf16 product of two square matrices, the best of 20."""
    a, b = (torch.randn(size, size, device=device.name, dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(23):
        began = device.now()
        a @ b
        found.append(device.now() - began)
    return float(2 * size**3 / min(found[3:]))


def training(device: Device, sizes: Sizes, case: str, ceiling: float) -> str:
    """One line: SFT or a reward model, by the loop that stages use."""
    draw = np.random.default_rng(0)
    ids = lambda n: draw.integers(3, sizes.shape["vocab_size"], n, dtype=np.int32)
    sides = 1 if case == "sft" else 2
    count = sizes.rows // sides * sizes.steps
    items = [
        Item(ids(sizes.prompt), tuple(ids(sizes.response) for _ in range(sides)), (None,) * sides, (1.0, 0.0)[:sides])
        for _ in range(count)
    ]
    kind = AutoModelForCausalLM if case == "sft" else AutoModelForSequenceClassification
    model = made(kind, sizes.shape, device, torch.float32)
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
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(device=device.name, train_rows=sizes.micro)
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
    rate = flops / statistics.median(seconds)
    tokens = step * lengths.tokens / statistics.median(seconds)
    return (
        f"| {case} | {tokens:,.0f} | {rate / 1e12:.2f} | {rate / ceiling:.1%} | {flops / max(seconds) / ceiling:.1%} to "
        f"{flops / min(seconds) / ceiling:.1%} | {memory(device.peak(), held + active)} |"
    )


def memory(peak: int, forecast: int) -> str:
    """Peak and forecast in GB, and their ratio."""
    if peak == 0:
        return f"not measured, {forecast / 1e9:.2f}, -"
    return f"{peak / 1e9:.2f}, {forecast / 1e9:.2f}, {peak / forecast:.2f}"


def made(kind: Any, shape: dict[str, Any], device: Device, dtype: torch.dtype) -> Any:
    """A random model on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=EOS, num_labels=1)
    with torch.device(device.name):
        return kind.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def sampler(device: Device, sizes: Sizes, repeats: int) -> list[str]:
    """Two lines: useful tokens a second, ours and transformers', interleaved."""
    model = made(AutoModelForCausalLM, sizes.shape, device, torch.bfloat16)
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

    took: dict[str, list[float]] = {"engine.generate": [], "transformers.generate": []}
    for turn in range(repeats + 1):
        for name, run in (("engine.generate", ours), ("transformers.generate", theirs)):
            began = device.now()
            run()
            if turn:  # the first one warms up
                took[name].append(device.now() - began)
    ratios = [b / a for a, b in zip(*took.values())]
    first = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        f"| {name} | {tokens / statistics.median(seconds):,.0f} | {first if name.startswith('engine') else '1'} |"
        for name, seconds in took.items()
    ]


@contextmanager
def timed(device: Device, took: dict[str, float], **places: tuple[Any, str]) -> Iterator[None]:
    """Inside, the time that these functions take is added up under their names."""

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **settings: Any) -> Any:
            began = device.now()
            try:
                return function(*args, **settings)
            finally:
                took[name] = took.get(name, 0.0) + device.now() - began

        return watched

    kept = {name: getattr(*place) for name, place in places.items()}
    for name, (module, attribute) in places.items():
        setattr(module, attribute, watch(name, kept[name]))
    try:
        yield
    finally:
        for name, (module, attribute) in places.items():
            setattr(module, attribute, kept[name])


def ppo(device: Device, sizes: Sizes, iterations: int) -> list[str]:
    """Lines: shares of the time of PPO iterations, policy and critic of the smaller shape."""
    from engine.models import reward_from_policy, save_model
    from engine.pretrain import train_tokenizer
    from engine.template import make_chat

    chat = make_chat(train_tokenizer(("a small bird sings in the old tree",) * 50, 320), Template())
    shape = {**sizes.shape_online, "vocab_size": len(chat.tokenizer)}
    with tempfile.TemporaryDirectory() as scratch:
        policy, reward, prompts, out = (Path(scratch) / name for name in ("policy", "reward", "prompts", "out"))
        save_model(made(AutoModelForCausalLM, shape, Device("cpu"), torch.float32), chat, policy, "policy")
        save_model(reward_from_policy(policy, Runtime(), seed=0), chat, reward, "reward")
        for folder in (prompts, out):
            folder.mkdir()
        asked = "sing " * max(1, sizes.prompt // 10)
        rows = [{"id": str(i), "messages": [{"role": "user", "content": f"{asked}{i}"}], "category": "c",
                 "is_safety": False, "source": "benchmark"} for i in range(sizes.batch)]  # fmt: skip
        write_rows(prompts / "rows.parquet", "Prompt", rows)
        longest = max(len(chat.prompt_ids(row["messages"])) for row in rows)
        limits = Limits(prompt_tokens=longest, response_tokens=sizes.response)
        recipe = Online(method="ppo", iterations=iterations, batch_size=sizes.batch, minibatch_size=sizes.batch // 2, k=1,
                        warmup_batches=0, limits=limits, dtype="bfloat16")  # fmt: skip
        runtime = Runtime(
            device=device.name, train_rows=sizes.micro, score_rows=2 * sizes.micro, sample_rows=sizes.batch
        )
        inputs: dict[str, Any] = {"policy": policy, "rewards": [reward], "prompts": prompts}
        job = Job(stage="online", recipe=recipe, inputs=inputs, out=out, runtime=runtime)
        took: dict[str, float] = {}
        device.forget_peak()
        with timed(device, took, sampling=(rollouts, "generate"), reading=(rollouts, "_read"), rollouts=(online, "roll"),
                   learning=(online, "improve"), step=(online, "_step")):  # fmt: skip
            online.run(job)
    took["scoring and the rest of the rollouts"] = took.pop("rollouts") - took["sampling"] - took["reading"]
    whole = took.pop("step")
    own, critic = sizes_of(shape), sizes_of(shape, reward=True)
    held = sum(training_bytes(one.parameters, one.parameters, "bfloat16").total for one in (own, critic))
    held += 4 * (own.parameters + critic.parameters)  # reference and reward model
    lines = [f"| {name} | {seconds / iterations:.3f} | {seconds / whole:.1%} |" for name, seconds in took.items()]
    return [
        *lines,
        f"| all | {whole / iterations:.3f} | 100 % |",
        "",
        f"Peak, weights and optimizer states of all four models in GB, ratio: {memory(device.peak(), held)}.",
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
    print("| training | tokens/s | TFLOP/s | of the matrix rate | spread | peak, forecast in GB, ratio |")
    print("|---|---|---|---|---|---|")
    for case in ("sft", "reward"):
        print(training(device, sizes, case, ceiling), flush=True)
    print("\n| sampler | useful tokens/s | ratio |\n|---|---|---|")
    print(*sampler(device, sizes, given.repeats), sep="\n", flush=True)
    print("\n| PPO, part of an iteration | seconds | share |\n|---|---|---|")
    print(*ppo(device, sizes, given.repeats), sep="\n", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
