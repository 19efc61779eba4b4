"""One of two processes under ZeRO-3 that compute unlike batches: a long prompt, a long response. Prints JSON."""

import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import engine.zero
from configs.recipes import Optimizer
from configs.runtime import Runtime
from engine.batches import collate
from engine.sharding import Plain
from engine.zero import Zero

torch.set_num_threads(1)
SHAPE = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0)  # fmt: skip
config = engine.zero._config


def cut_everything(*given: object) -> dict:
    """DeepSpeed keeps small parameters whole unless it is told not to: then nothing is fetched and nothing can go wrong."""
    found = config(*given)
    found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return found


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(SHAPE, attn_implementation="sdpa").eval()


def main() -> None:
    engine.zero._config = cut_everything
    draw = torch.Generator().manual_seed(1)
    ids = lambda count: torch.randint(3, 40, (count,), generator=draw).tolist()
    batches = [collate([(ids(40), ids(5))], pad_id=0), collate([(ids(2), ids(40))], pad_id=0)]
    optimizer = Optimizer(learning_rate=1e-3, schedule="constant", warmup=0, min_warmup_steps=0)
    plain = Plain(model(), optimizer, 5)
    wanted = [plain.forward(("policy_logp",), batch)["policy_logp"].sum() for batch in batches]
    cut = Zero(model(), optimizer, 5, Runtime(launcher="deepspeed", processes=2, zero=3), "float32")
    found = cut.forward(("policy_logp",), batches[cut.rank])["policy_logp"].sum()
    told = {"wanted": wanted[cut.rank].item(), "found": found.item()}
    for total in wanted:
        plain.backward(-total / 50)
    cut.backward(-found / 50)
    print(json.dumps({**told, "wanted_norm": plain.step(), "norm": cut.step()}), flush=True)


if __name__ == "__main__":
    main()
