"""Llama 2 by arithmetic, beside what its paper and its files say: `python -m benchmarks.paper`."""

from dataclasses import dataclass

from cli.costs import Lengths, Sizes, activation_bytes, sizes_of, training_bytes
from configs import load

TOKENS, CONTEXT = 2e12, 4096  # of its pretraining (arXiv 2307.09288, table 1)
PEAK = 312e12  # FLOP/s of an A100 in bfloat16


@dataclass(frozen=True)
class Published:
    """hours: on A100-80GB, of the paper's table 2; files: bytes that the index of its safetensors files on the hub says."""

    hours: int
    files: int


PUBLISHED = {"7b": Published(184_320, 13_476_839_424), "70b": Published(1_720_320, 137_953_316_864)}


def table(head: str, rows: list[list[str]]) -> str:
    """Markdown."""
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def size(name: str, sizes: Sizes) -> list[str]:
    """Parameters and bytes."""
    bytes_ = 2 * sizes.parameters
    share = bytes_ / PUBLISHED[name].files - 1
    return [name, f"{sizes.parameters:,}", f"{bytes_:,}", f"{PUBLISHED[name].files:,}", f"{share:+.1e}"]


def token(sizes: Sizes) -> float:
    """FLOPs of a token of pretraining."""
    return sizes.learning(Lengths.fixed(0, CONTEXT), CONTEXT) / CONTEXT


def hours(name: str, sizes: Sizes, other: str, others: Sizes) -> list[str]:
    """A model's GPU hours by the rate at which the other one was trained."""
    rate = token(others) * TOKENS / (PUBLISHED[other].hours * 3600)
    found = token(sizes) * TOKENS / rate / 3600
    own = token(sizes) * TOKENS / (PUBLISHED[name].hours * 3600)
    return [
        name, f"{6 * sizes.parameters / 1e9:.1f} G", f"{token(sizes) / 1e9:.1f} G", f"{token(sizes) * TOKENS:.2e}",
        f"{own / 1e12:.0f} TFLOP/s, {own / PEAK:.0%}", f"{PUBLISHED[name].hours:,}",
        f"{found:,.0f} ({found / PUBLISHED[name].hours - 1:+.1%})",
    ]  # fmt: skip


def memory(name: str, sizes: Sizes) -> list[str]:
    """GB a device of 64 under each ZeRO stage, and of one sequence for the backward pass."""
    n = sizes.parameters
    held = [training_bytes(n, n, "bfloat16", launcher="deepspeed", zero=z, processes=64).total for z in range(4)]
    kept = activation_bytes(sizes, 1, Lengths.fixed(0, CONTEXT), CONTEXT, "bfloat16")
    return [name, *(f"{one / 1e9:.1f}" for one in (*held, kept))]


def main() -> None:
    models = {}
    for name in PUBLISHED:
        adopt = load(f"llama2-{name}", require_data=False).base.adopt
        assert adopt is not None
        models[name] = sizes_of(adopt.architecture)
    print(table("model | parameters | bytes in bf16 | published | off by", [size(n, s) for n, s in models.items()]))
    first, last = models
    print()
    print(
        table(
            "pretraining | FLOPs a token, 6 N | with attention | on 2e12 tokens | a GPU sustained, of 312 TFLOP/s "
            "| published GPU hours | by the other's rate",
            [hours(first, models[first], last, models[last]), hours(last, models[last], first, models[first])],
        )
    )
    print()
    head = "training in bf16, GB a device of 64 | ZeRO-0 | ZeRO-1 | ZeRO-2 | ZeRO-3 | a sequence of 4096, backward"
    print(table(head, [memory(name, sizes) for name, sizes in models.items()]))


if __name__ == "__main__":
    main()
