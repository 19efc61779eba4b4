"""The same batch through TRL 1.16 and through methods/: losses, gradients and advantages side by side.

    python -m venv .venv-trl && .venv-trl/bin/pip install trl==1.16.0 torch==2.13.0
    .venv-trl/bin/python -m benchmarks.trl_parity

TRL's own trainers collate, run the model and reduce; ours gets the logits of the same model and the same masks. Models and
tokenizer are tiny and random, made here; nothing is downloaded. Prints a Markdown table; exits 1 if a difference that should
be none exceeds 1e-5 of the value.
"""

import hashlib
import os
import random
import sys
import tempfile
from dataclasses import replace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

import methods
from methods import ops
from methods.batch import Rollout, batch_of, denominator

WORDS = [f"w{i}" for i in range(40)]
ROWS = 4
BOUND = 1e-5


def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def model(kind: Any, seed: int, **more: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=43,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.5,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **more,
    )
    return kind(config).eval()


def text(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def pairs() -> Dataset:
    rng = random.Random(0)
    return Dataset.from_list(
        [{"prompt": text(rng, 2, 6) + " ", "chosen": text(rng, 3, 9), "rejected": text(rng, 3, 9)} for _ in range(ROWS)]
    )


def common(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "report_to": [],
        "per_device_train_batch_size": ROWS,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def pair_batch(mask: torch.Tensor, name: str) -> Any:
    """TRL's order: all chosen responses, then all rejected ones."""
    half = mask.shape[0] // 2
    group, rank = torch.arange(half).repeat(2), torch.arange(2).repeat_interleave(half)
    batch = batch_of(mask, group=group, rank=rank)
    return replace(batch, count=denominator(methods.load(name), batch))


def gradient(of: Any, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, [p for p in of.parameters() if p.requires_grad], allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def compare(what: str, ours: torch.Tensor, theirs: torch.Tensor, net: Any = None, note: str = "") -> tuple[str, ...]:
    """One row of the table: what, theirs, ours, difference, relative difference of the gradients, note."""
    difference = float((ours - theirs).detach().abs().max())
    slope = ""
    if net is not None:
        a, b = gradient(net, ours), gradient(net, theirs)
        slope = f"{float((a - b).norm() / b.norm()):.1e}"
    value = lambda x: f"{float(x.detach()):.6f}" if x.dim() == 0 else f"{x.numel()} values"
    return what, value(theirs), value(ours), f"{difference:.1e}", slope, note


def sft(folder: str) -> list[tuple[str, ...]]:
    net = model(LlamaForCausalLM, 8)
    data = pairs().remove_columns("rejected").rename_column("chosen", "completion")
    args = SFTConfig(**common(folder), max_length=64)
    trainer = SFTTrainer(net, args=args, train_dataset=data, processing_class=tokenizer())
    net.eval()
    inputs = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(net, dict(inputs))
    mask = (inputs["labels"] != -100)[:, 1:]
    logits = net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    method = methods.load("sft")
    loss, _ = method.loss(
        {"policy_logp": ops.next_token_logps(logits, inputs["input_ids"])}, batch_of(mask), method.Config()
    )
    return [compare("SFT / sft", loss, wanted, net)]


DPO_LOSSES = [
    ("sigmoid", "sigmoid", {}, ""),
    ("robust", "robust", {"label_smoothing": 0.1}, ""),
    ("hinge", "hinge", {}, ""),
    ("ipo", "ipo", {}, "mean log-ratios on both sides"),
    ("sigmoid_norm", "sigmoid-lengthnorm", {}, "TRL's name is not RSO's sigmoid-norm"),
    ("sigmoid", "cdpo", {"label_smoothing": 0.1}, "differs: TRL ignores label_smoothing here"),
]


def dpo(folder: str) -> list[tuple[str, ...]]:
    found = []
    for theirs, ours, more, note in DPO_LOSSES:
        policy, reference = model(LlamaForCausalLM, 1), model(LlamaForCausalLM, 2)
        args = DPOConfig(**common(folder), loss_type=theirs, beta=0.1, max_length=64, **more)
        trainer = DPOTrainer(
            policy, ref_model=reference, args=args, train_dataset=pairs(), processing_class=tokenizer()
        )
        policy.eval()
        inputs = next(iter(trainer.get_train_dataloader()))
        wanted = trainer.compute_loss(policy, dict(inputs))
        mask = inputs["completion_mask"][:, 1:].bool()
        logps = {
            name: ops.next_token_logps(
                net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits, inputs["input_ids"]
            )
            for name, net in (("policy_logp", policy), ("reference_logp", reference))
        }
        method = methods.load("dpo")
        loss, _ = method.loss(logps, pair_batch(mask, "dpo"), method.Config(loss=ours, beta=0.1, **more))
        found.append(compare(f"DPO {theirs} / dpo {ours}", loss, wanted, policy, note))
    return found


def reward(folder: str) -> list[tuple[str, ...]]:
    net = model(LlamaForSequenceClassification, 3, num_labels=1)
    data = pairs().add_column("margin", [0.0, 1 / 3, 2 / 3, 1.0])
    args = RewardConfig(**common(folder), max_length=64, center_rewards_coefficient=None)
    trainer = RewardTrainer(net, args=args, train_dataset=data, processing_class=tokenizer())
    net.eval()
    inputs = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(net, dict(inputs))
    scores = net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.squeeze(-1)
    batch = pair_batch(inputs["attention_mask"].bool(), "reward")
    margin = inputs["margin"].float()
    method = methods.load("reward")
    loss, _ = method.loss({"reward": scores}, replace(batch, grade=(3 * margin).round().repeat(2)), method.Config())
    return [compare("Reward with margin / reward small", loss, wanted, net)]


def score(completions: list[str], **_: Any) -> list[float]:
    """A reward that depends on nothing but the text."""
    return [int(hashlib.sha256(c.encode()).hexdigest()[:6], 16) / 2**22 for c in completions]


GROUPS: dict[str, tuple[float, dict[str, Any], dict[str, Any]]] = {  # KL coefficient, TRL's settings, ours
    "rloo": (0.05, {}, {}),
    "grpo": (0.04, {"loss_type": "grpo", "scale_rewards": "group"}, {"kl_estimator": "k3-weighted"}),
    "dr-grpo": (
        0.04,
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"kl_estimator": "k3-weighted", "scale": "none", "length_constant": 8},
    ),
}


def online(folder: str, name: str) -> list[tuple[str, ...]]:
    kind = "rloo" if name == "rloo" else "grpo"
    model(LlamaForCausalLM, 4).save_pretrained(f"{folder}/policy")  # TRL reads the reference from the policy's path
    policy = LlamaForCausalLM.from_pretrained(f"{folder}/policy")
    config, trainer_of = (GRPOConfig, GRPOTrainer) if kind == "grpo" else (RLOOConfig, RLOOTrainer)
    beta, more, own = GROUPS[name]
    args = config(
        **common(folder),
        num_generations=ROWS,
        max_completion_length=8,
        beta=beta,
        num_iterations=2,
        steps_per_generation=2,
        temperature=1.0,
        **more,
    )
    prompts = Dataset.from_list([{"prompt": "w1 w2 w3"}, {"prompt": "w4"}])
    trainer = trainer_of(policy, reward_funcs=score, args=args, train_dataset=prompts, processing_class=tokenizer())
    torch.manual_seed(5)
    rows = [row for row in prompts for _ in range(ROWS)]
    with torch.random.fork_rng():
        torch.manual_seed(6)
        trainer.model.train()
        made = trainer._generate_and_score_completions(rows)
    policy.eval()
    with torch.no_grad():  # a policy that has moved since the rollout
        for p in policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
    mask = made["completion_mask"].bool()
    ids = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
    attention = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
    start = made["prompt_ids"].shape[1] - 1
    new = lambda net: ops.next_token_logps(net(input_ids=ids, attention_mask=attention).logits, ids)[:, start:]
    fresh = model(LlamaForCausalLM, 4)  # the policy of the rollout, which is the reference, too
    with torch.no_grad():
        old = new(fresh)
    texts = trainer.processing_class.batch_decode(made["completion_ids"], skip_special_tokens=True)
    rollout = Rollout(
        mask=mask,
        old_logp=old,
        reference_logp=old,
        score=torch.tensor(score(texts)),
        finished=torch.ones(len(rows), dtype=torch.bool),
        group=torch.arange(2).repeat_interleave(ROWS),
    )
    method = methods.load(kind)
    settings = method.Config(kl_coef=beta, missing_eos="none", **own)
    tensors, _, _ = method.signal(rollout, settings, method.initial_state(settings))
    found = [compare(f"{name.upper()} advantages / {kind}", tensors["advantages"][:, 0], made["advantages"])]
    if kind == "grpo":
        made = {**made, "old_per_token_logps": old, "ref_per_token_logps": old}
    else:
        made = {**made, "old_logps": (old * mask).sum(1)}
    wanted = trainer._compute_loss(policy, made)
    batch = batch_of(mask, group=rollout.group)
    batch = replace(batch, count=denominator(method, batch))
    forwards = {"policy_logp": new(policy), "old_logp": old, "reference_logp": old, **tensors}
    loss, _ = method.loss(forwards, batch, settings)
    found.append(compare(f"{name.upper()} loss after a step / {kind}", loss, wanted, policy))
    return found


def main() -> int:
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*sft(folder), *dpo(folder), *reward(folder)]
        rows += [row for name in GROUPS for row in online(folder, name)]
    print("| TRL 1.16 / ours | TRL | ours | difference | gradient, relative | |\n|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    wrong = [row[0] for row in rows if float(row[3]) > BOUND * 10 and not row[5].startswith("differs")]
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} as expected" + (f"; not: {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
