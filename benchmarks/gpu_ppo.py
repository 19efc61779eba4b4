"""PPO on a GPU, by the loop that stages use: where an iteration's time goes, FLOPs, memory (a part of benchmarks.gpu)."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu_device import Device, Sizes, made, memory, sampled_by
from cli.costs import Lengths, activation_bytes, cache_bytes, rolling, sizes_of, training_bytes
from configs.recipes import Limits, Online, Template
from configs.runtime import Runtime
from engine import online, rollouts
from engine.job import Job
from storage.rows import write_rows


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


def ppo(device: Device, sizes: Sizes, iterations: int, ceiling: float) -> list[str]:
    """Lines: shares of the time of PPO iterations, policy and critic of the smaller shape; FLOPs of the work; memory."""
    from engine.models import reward_from_policy, save_model
    from engine.pretrain import train_tokenizer
    from engine.template import make_chat

    chat = make_chat(train_tokenizer(("a small bird sings in the old tree",) * 50, 320), Template())
    shape = {**sizes.shape_online, "vocab_size": len(chat.tokenizer)}
    with tempfile.TemporaryDirectory() as scratch:
        policy, reward, prompts, out = (Path(scratch) / name for name in ("policy", "reward", "prompts", "out"))
        model = made(AutoModelForCausalLM, shape, Device("cpu"), torch.float32)
        decoder = sampled_by(model)
        save_model(model, chat, policy, "policy")
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
                   learning=(online, "improve"), step=(online, "_step")), redirect_stdout(sys.stderr):  # fmt: skip
            summary = online.run(job)  # tells by stdout
    took["scoring and the rest of the rollouts"] = took.pop("rollouts") - took["sampling"] - took["reading"]
    whole = took.pop("step")
    lengths = Lengths.fixed(longest, summary["tokens"] / (iterations * sizes.batch))
    own, critic = sizes_of(shape), sizes_of(shape, reward=True)
    each = rolling(own, own, critic, 1, lengths) + sum(one.learning(lengths, lengths.response) for one in (own, critic))
    held = sum(training_bytes(one.parameters, one.parameters, "bfloat16").total for one in (own, critic))
    held += 4 * (own.parameters + critic.parameters)  # reference and reward model
    active = activation_bytes(own, sizes.micro, lengths, lengths.response, "bfloat16")
    cached = cache_bytes(own, sizes.batch, lengths, "float32")
    rate = each * sizes.batch * iterations / whole
    lines = [f"| {name} | {seconds / iterations:.3f} | {seconds / whole:.1%} |" for name, seconds in took.items()]
    return [
        *lines,
        f"| all | {whole / iterations:.3f} | 100 % |",
        "",
        f"{rate / 1e12:.3f} TFLOP/s of the work in all, {rate / ceiling:.1%} of the matrix rate; sampled by {decoder}.",
        f"Peak, forecast (four models, optimizer states, activations or cache) in GB, ratio: "
        f"{memory(device.peak(), held + max(active, cached))}.",
    ]
