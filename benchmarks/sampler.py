"""Useful tokens a second: engine.generate against transformers.generate with num_return_sequences=8, side by side.

    python -m benchmarks.sampler [--repeats 5] [--threads 1] [--only 0.3M] [--lengths full] [--engine layers]

Two models (0.3M: the shape of stories260K; 5M: 6 layers, 192 wide, vocabulary 8,000) at two kinds of length: `full`, where
no row ever ends, and `natural`, the lengths of a policy trained on the spot on the world's demonstrations. Both sides see
the same prompts, temperature 1, no truncation of the distribution; tokens after a row's EOS do not count. Rates are
medians over interleaved repeats, per second of processor time (other work on the machine disturbs it least; with one
thread on a quiet machine it is the wall time); the spread is from the smallest to the largest ratio of the repeats.
`--engine` forces a way of decoding on our side: folded copies of the weights (`copy`, which models of these sizes get), the
model's own layers with shared prompts (`layers`: large Llamas) or its own forward pass (`forward`: other architectures).
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import engine.generate
import world
from engine import folding
from engine.decoders import CacheDecoder
from engine.generate import generate

K = 8
PAD, BOS, EOS = 0, 1, 2
SHAPES = {
    "0.3M": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
             "num_attention_heads": 8, "num_key_value_heads": 4},
    "5M": {"vocab_size": 8000, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
           "num_attention_heads": 6, "num_key_value_heads": 6},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    model: str
    lengths: str  # "full" or "natural"
    prompts: int
    prompt_tokens: int
    limit: int


CASES = [
    Case(model, lengths, prompts, tokens, limit)
    for model in SHAPES
    for lengths, tokens, limit in (("full", 48, 32), ("full", 200, 64), ("natural", 48, 32), ("natural", 48, 64))
    for prompts in ((8, 32) if lengths == "full" else (32, 128))
]


class Words:
    """The world's words as token ids: what a policy of the benchmark reads and writes."""

    eos_id = EOS

    def __init__(self, rows: Sequence[Any]) -> None:
        texts = sorted(
            {word for row in rows for message in row["messages"] for word in self._split(message["content"])}
        )
        self.ids = {word: 3 + i for i, word in enumerate(texts)}

    @staticmethod
    def _split(text: str) -> list[str]:
        return text.replace(".", " .").replace("?", " ?").replace(",", " ,").split()

    def encode(self, text: str) -> list[int]:
        """Ids of a text whose words are known."""
        return [self.ids[word] for word in self._split(text)]


def build(shape: str, vocab: int | None = None) -> Any:
    """A random Llama of one of the shapes."""
    torch.manual_seed(0)
    config = {**SHAPES[shape], **({"vocab_size": vocab} if vocab else {})}
    return LlamaForCausalLM(
        LlamaConfig(**config, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=PAD, bos_token_id=BOS,
                    eos_token_id=EOS)
    ).eval()  # fmt: skip


def train(shape: str, steps: int = 300) -> tuple[Any, list[list[int]], float]:
    """A policy that answers the world's prompts, the prompts, and the mean length of its demonstrations."""
    rows = list(world.demonstrations(0, 2000))
    words = Words(rows)
    pairs = [
        (
            [BOS, *(t for m in row["messages"][:-1] for t in words.encode(m["content"]))],
            words.encode(row["messages"][-1]["content"]),
        )
        for row in rows
    ]
    model = build(shape, max(SHAPES[shape]["vocab_size"], len(words.ids) + 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = random.Random(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        batch = [pairs[order.randrange(len(pairs))] for _ in range(32)]
        longest = max(len(p) + len(r) for p, r in batch) + 1
        ids, labels = torch.zeros(len(batch), longest, dtype=torch.long), torch.full((len(batch), longest), -100)
        for i, (prompt, response) in enumerate(batch):
            whole = torch.tensor([*prompt, *response, EOS])
            ids[i, : len(whole)] = whole
            labels[i, len(prompt) : len(whole)] = whole[len(prompt) :]
        logits = model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), [p for p, _ in pairs], statistics.mean(len(r) + 1 for _, r in pairs)


def ours(model: Any, prompts: list[list[int]], limit: int, eos: int) -> tuple[int, float]:
    """Useful tokens and seconds of engine.generate."""
    chat = type("Chat", (), {"eos_id": eos})
    asked = [prompt for prompt in prompts for _ in range(K)]
    keys = [(str(i), k) for i in range(len(prompts)) for k in range(K)]
    began = time.process_time()
    found = generate(
        model, chat, asked, keys, seed=0, stream="benchmark", temperature=1.0, max_new_tokens=limit, rows=256
    )
    seconds = time.process_time() - began
    return sum(len(response.token_ids) for response in found), seconds


def theirs(model: Any, prompts: list[list[int]], limit: int, eos: int) -> tuple[int, float]:
    """The same of transformers.generate, in batches of 256 rows."""
    torch.manual_seed(1)
    tokens, seconds = 0, 0.0
    for first in range(0, len(prompts), 256 // K):
        some = prompts[first : first + 256 // K]
        width = max(map(len, some))
        ids = torch.tensor([[PAD] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        began = time.process_time()
        found = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=K,
            max_new_tokens=limit, eos_token_id=eos if eos >= 0 else None, pad_token_id=PAD,
        )  # fmt: skip
        seconds += time.process_time() - began
        for row in found[:, width:].tolist():
            tokens += row.index(eos) + 1 if eos in row else len(row)
    return tokens, seconds


def measure(case: Case, repeats: int, trained: dict[str, Any]) -> str:
    """One line of the table."""
    order = random.Random(1)
    if case.lengths == "natural":
        model, pool, _ = trained[case.model]
        different = sorted(set(map(tuple, pool)))
        prompts, eos = [list(prompt) for prompt in order.sample(different, case.prompts)], EOS
    else:
        model, eos = build(case.model), -1
        vocab = SHAPES[case.model]["vocab_size"]
        lengths = [order.randrange(case.prompt_tokens // 2, case.prompt_tokens) for _ in range(case.prompts)]
        prompts = [[BOS, *(order.randrange(3, vocab) for _ in range(n))] for n in lengths]
    ours(model, prompts[:2], 4, eos)
    theirs(model, prompts[:2], 4, eos)
    pairs = [(ours(model, prompts, case.limit, eos), theirs(model, prompts, case.limit, eos)) for _ in range(repeats)]
    rates = [(a[0] / a[1], b[0] / b[1]) for a, b in pairs]
    ratios = [a / b for a, b in rates]
    mean = pairs[0][0][0] / (len(prompts) * K)
    return (
        f"{case.model:>5} {case.lengths:>8} {case.prompts * K:>5} {statistics.mean(map(len, prompts)):>7.0f} {case.limit:>6} "
        f"{mean:>6.1f} {statistics.median(a for a, _ in rates):>9.0f} {statistics.median(b for _, b in rates):>9.0f} "
        f"{statistics.median(ratios):>6.2f}  {min(ratios):.2f} to {max(ratios):.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=sorted(SHAPES))
    parser.add_argument("--lengths", choices=("full", "natural"))
    parser.add_argument("--engine", choices=("copy", "layers", "forward"), default="copy")
    chosen = parser.parse_args()
    if chosen.engine == "layers":
        folding.LARGEST_COPY = 0
    if chosen.engine == "forward":
        engine.generate.decoder_for = CacheDecoder
    torch.set_num_threads(chosen.threads)
    logging.set_verbosity_error()
    cases = [c for c in CASES if chosen.only in (None, c.model) and chosen.lengths in (None, c.lengths)]
    trained = {model: train(model) for model in sorted({c.model for c in cases if c.lengths == "natural"})}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, {chosen.threads} thread(s), {chosen.repeats} repeats")
    print("model  lengths  rows  prompt  limit   mean  ours t/s  theirs t/s  ratio  spread")
    for case in cases:
        print(measure(case, chosen.repeats, trained), flush=True)


if __name__ == "__main__":
    main()
