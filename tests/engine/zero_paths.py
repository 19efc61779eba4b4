"""One of two processes that train a model, whole and by adapters, under each ZeRO stage beside a plain copy of it.

The processes compute unlike batches: a long prompt, for which a last layer is pruned, and a long response. Prints JSON: the
greatest differences between both ways.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import engine.forwards
import engine.zero
from configs.recipes import Lora, Optimizer
from configs.runtime import Runtime
from engine import adapters
from engine.batches import collate
from engine.forwards import logps
from engine.sharding import Plain
from engine.zero import WorkerDone, Zero

SHAPE = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=45, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0)  # fmt: skip
OPTIMIZER = Optimizer(learning_rate=1e-3, schedule="constant", warmup=0, min_warmup_steps=0)
draw = torch.Generator().manual_seed(1)
ids = lambda count: torch.randint(3, 40, (count,), generator=draw).tolist()
BATCHES = [collate([(ids(40), ids(5))], pad_id=0), collate([(ids(2), ids(40))], pad_id=0)]
config = engine.zero._config


def cut_everything(*given: object) -> dict:
    """DeepSpeed keeps small parameters whole unless it is told not to: then nothing is fetched and nothing can go wrong."""
    found = config(*given)
    found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return found


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(SHAPE, attn_implementation="sdpa").eval()


def adapted() -> Any:
    return adapters.add(model(), Lora(rank=3, alpha=8.0), seed=1)


def learn(plain: Plain, cut: Zero) -> float:
    """Two steps of both; the greatest relative difference of their gradient norms."""
    gaps = []
    for _ in range(2):
        for batch in BATCHES:
            plain.backward(-plain.forward(("policy_logp",), batch)["policy_logp"].sum() / 50)
        cut.backward(-cut.forward(("policy_logp",), BATCHES[cut.rank])["policy_logp"].sum() / 50)
        wanted = plain.step()
        gaps.append(abs(cut.step() - wanted) / wanted)
    return max(gaps)


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(two), set(one) ^ set(two)
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def compared(zero: int, make: Callable[[], Any], folder: Path) -> dict[str, float]:
    """From the first step to what is published; in between both go back to a save point that ZeRO wrote."""
    runtime = Runtime(launcher="deepspeed", processes=2, zero=zero)
    plain, cut = Plain(make(), OPTIMIZER, 9), Zero(make(), OPTIMIZER, 9, runtime, "float32")
    gaps = {"norm": learn(plain, cut)}
    read = cut.reader
    with torch.no_grad():
        gaps["read"] = float((logps(read, BATCHES[1]) - logps(plain.model, BATCHES[1])).abs().max())
        if adapters.layers(read):
            with adapters.off(read):
                gaps["off"] = float((logps(read, BATCHES[1]) - logps(model(), BATCHES[1])).abs().max())
    cut.collect(everywhere=True)
    record = cut.save(folder)
    learn(plain, cut)
    other = Plain(make(), OPTIMIZER, 9)
    other.restore(folder, record)
    cut.restore(folder, record)
    cut.collect(everywhere=True)
    gaps["restored"] = apart(cut._gathered, other._tensors())
    gaps["norm again"] = learn(other, cut)
    gaps["weights"] = apart(trained(other.model), trained(plain.model))
    cut.refresh()
    gaps["read again"] = apart(trained(cut.reader), trained(other.model))
    try:
        gaps["published"] = apart(*(adapters.merged(x.gather()).state_dict() for x in (cut, other)))
    except WorkerDone:
        assert cut.rank > 0
    return gaps


def trained(whole: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in whole.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    torch.set_num_threads(1)
    engine.zero._config = cut_everything
    engine.forwards._CHUNK = 8 * SHAPE.vocab_size  # logits of the long response come in parts
    with tempfile.TemporaryDirectory() as scratch:
        gaps = {
            f"{make.__name__} {zero}": compared(zero, make, Path(scratch))
            for zero in map(int, sys.argv[1:])
            for make in (model, adapted)
        }
    print(json.dumps(gaps), flush=True)
