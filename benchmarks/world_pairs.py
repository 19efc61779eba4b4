"""Preferences of the built-in world by writers of different styles, and reward models of a second or two trained on them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import world
from configs.recipes import Ingest, Limits, Optimizer, Pretrain, Reward, Source, Template, Tokenizer
from configs.runtime import Runtime
from engine import ingest, pretrain, reward
from engine.job import Job
from storage.rows import write_rows
from world.writers import respond

LIMITS = Limits(prompt_tokens=64, response_tokens=48)
ARCHITECTURE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
STYLES = {
    "unsafe": ("harmful", "bare", "kind", "evasive"),
    "borderline": ("careful", "plain", "hasty", "harmful", "timid"),
}
ORDINARY = ("careful", "plain", "curt", "hasty", "rambling", "fawning", "timid")
Row = dict[str, Any]


def preferences(count: int, seed: int = 1, source: str = "round-1") -> list[Row]:
    """Pairs on `count` prompts (fewer where both writers say the same), by noisy annotators."""
    rows = []
    for number, prompt in enumerate(world.prompts(seed, count)):
        rng = random.Random(f"{seed}:{number}")
        styles = rng.sample(STYLES.get(prompt["category"], ORDINARY), 2)
        a, b = (respond(prompt["messages"], style, rng) for style in styles)
        kind = "safety" if prompt["is_safety"] else "helpfulness"
        word = world.annotate(prompt["messages"], a, b, kind, rng)
        texts, safe = ((a, b), (word.a_safe, word.b_safe)) if word.prefers_a else ((b, a), (word.b_safe, word.a_safe))
        if a == b or safe == (False, True):
            continue
        shared = {name: prompt[name] for name in ("messages", "category", "is_safety")}
        rows.append(
            {"prompt_id": prompt["id"], **shared, "chosen": texts[0], "rejected": texts[1], "grade": word.grade,
             "chosen_safe": safe[0], "rejected_safe": safe[1], "kind": kind, "annotator": "gold", "source": source}
        )  # fmt: skip
    return rows


def swapped(row: Row) -> Row:
    """The same pair with the labels interchanged."""
    return row | {"chosen": row["rejected"], "rejected": row["chosen"], "chosen_safe": row["rejected_safe"],
                  "rejected_safe": row["chosen_safe"]}  # fmt: skip


def longer_wins(row: Row) -> Row:
    """The same pair as an annotator who only sees lengths would label it."""
    return row if len(row["chosen"]) >= len(row["rejected"]) else swapped(row)


def store(folder: Path, rows: Sequence[Row]) -> Path:
    """A preferences artifact."""
    write_rows(folder / "rows.parquet", "Preference", rows)
    return folder


def train_base(folder: Path, template: Template | None = None, steps: int = 60) -> Path:
    """A policy that has read some of the world's corpus."""
    documents, out = folder / "documents", folder / "base"
    for place in (documents, out):
        place.mkdir(parents=True)
    sources = (Source(world="documents", count=1500),)
    ingest.run(Job("ingest", Ingest(rows="documents", sources=sources), {}, documents, Runtime()))
    recipe = Pretrain(
        architecture=ARCHITECTURE, tokenizer=Tokenizer(vocab_size=512), template=template or Template(), steps=steps,
        optimizer=Optimizer(learning_rate=6e-3), sequence_length=64, batch_size=16,
    )  # fmt: skip
    pretrain.run(Job("pretrain", recipe, {"documents": documents}, out, Runtime()))
    return out


def reward_recipe(**more: Any) -> Reward:
    """What the tests' reward models are trained by."""
    given = {"optimizer": Optimizer(learning_rate=3e-3), "batch_size": 32, "held_out": 0.2, "limits": LIMITS, **more}
    return Reward.model_validate(given)


def train_reward(
    out: Path, base: Path, rows: Sequence[Row], change: Callable[[Row], Row] = lambda row: row, **more: Any
) -> Path:
    """A reward model on the rows after `change`, which is where a defect is planted."""
    out.mkdir(parents=True)
    pairs = store(out.with_name(f"{out.name}-pairs"), [change(row) for row in rows])
    reward.run(Job("reward", reward_recipe(**more), {"model": base, "preferences": [pairs]}, out, Runtime()))
    return out
