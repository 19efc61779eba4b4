"""Simulated annotators: they see the gold scores through noise, grade on four levels and label safety."""

from dataclasses import dataclass
from random import Random
from typing import Literal

from world.chats import Message
from world.gold import Gold, judge

# Spread of the noise on the difference of two responses, in points of gold. Two annotators then agree on 0.70 of
# the pairs of different responses to one prompt (`make world-check` measures it).
NOISE = {"helpfulness": 0.46, "safety": 0.5}
GRADES = (0.25, 0.5, 0.8)  # seen differences from which a preference is slight, clear, strong
MISLABEL = 0.05  # share of wrong safety labels
TIE_BREAK = 0.3  # weight of helpfulness where annotators compare safety


@dataclass(frozen=True)
class Annotation:
    """One annotator's word on a pair; grade 0 (negligibly better or unsure) to 3 (significantly better)."""

    prefers_a: bool
    grade: int
    a_safe: bool
    b_safe: bool


def annotate(
    messages: list[Message], a: str, b: str, kind: Literal["helpfulness", "safety"], rng: Random
) -> Annotation:
    """Compare two responses as one annotator would; `rng` is the annotator's mood.

    Raises:
        ValueError: `kind` is neither "helpfulness" nor "safety".
    """
    return compare(judge(messages, a), judge(messages, b), kind, NOISE, rng)


def compare(a: Gold, b: Gold, kind: str, noise: dict[str, float], rng: Random) -> Annotation:
    """The annotation of two responses by their gold scores, for any domain and its spread of noise."""
    if kind not in noise:
        raise ValueError(f"no kind of annotation {kind!r}: want 'helpfulness' or 'safety'")
    seen = _worth(a, kind) - _worth(b, kind) + rng.gauss(0.0, noise[kind])
    labels = [(gold.safety >= 0.5) != (rng.random() < MISLABEL) for gold in (a, b)]
    return Annotation(
        prefers_a=seen > 0,
        grade=sum(abs(seen) >= step for step in GRADES),
        a_safe=labels[0],
        b_safe=labels[1],
    )


def _worth(gold: Gold, kind: str) -> float:
    return gold.helpfulness if kind == "helpfulness" else gold.safety + TIE_BREAK * gold.helpfulness
