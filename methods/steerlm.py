"""SteerLM: attributes of a response as text in its prompt; train on all of them, sample with the ones that are wanted.

The four steps: (1) `reward-attributes` trains the attribute model, (2) it labels more data, (3) this method trains on prompt
and label, (4) samples drawn with `target` are labelled again and trained on (`select`).
Source: Dong et al. 2023 (arXiv 2310.05344), section 3; names and 0 .. 4 as in NeMo-Aligner, the paper has 0 .. 9.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods import sft
from methods.batch import Batch, Forwards, Metrics
from methods.candidates import Candidate, Row, check_truncated, eligible

loop = "offline"
unit = "token"
columns = ("messages",)  # attributes are used where present
forwards = ("policy_logp",)


@dataclass(frozen=True)
class Config:
    """Names, order and range of the attributes are part of the data set: one prompt, one label text."""

    attributes: tuple[str, ...] = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # HelpSteer
    wanted: tuple[int, ...] = ()  # levels asked for in sampling, in the same order; empty = the highest of each
    low: int = 0  # NeMo-Aligner
    high: int = 4  # NeMo-Aligner
    scale: Literal["levels", "ranks"] = "levels"  # ranks: `select` reads scores, see there; ours
    prefix: str = "\n<extra_id_2>"  # NeMo-Aligner
    truncated: Literal["exclude", "penalise", "keep"] = "exclude"  # ours
    penalty: float = 1.0  # off the score of a truncated response, with truncated = penalise; ours

    def __post_init__(self) -> None:
        if not self.attributes or len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"steerlm: attributes {self.attributes}: want at least one, each once")
        if self.low >= self.high:
            raise ValueError(f"steerlm: range {self.low} .. {self.high}: want low < high")
        if self.wanted and len(self.wanted) != len(self.attributes):
            raise ValueError(f"steerlm: {len(self.wanted)} wanted levels for {len(self.attributes)} attributes")
        if any(not self.low <= level <= self.high for level in self.wanted):
            raise ValueError(f"steerlm: wanted {self.wanted}: want levels in {self.low} .. {self.high}")
        if self.scale not in ("levels", "ranks"):
            raise ValueError(f"steerlm: scale {self.scale!r}: want levels or ranks")
        check_truncated("steerlm", self.truncated, self.penalty)


def level(value: float, config: Config) -> int:
    """A predicted attribute as an integer of the range: rounded half up, clipped."""
    return min(max(math.floor(value + 0.5), config.low), config.high)


def label(values: Mapping[str, float | None], config: Config) -> str:
    """The label text: known attributes in the order of the config, unknown ones left out, "" where none is known."""
    known = {name: value for name in config.attributes if (value := values.get(name)) is not None}
    return config.prefix + ",".join(f"{name}:{level(value, config)}" for name, value in known.items()) if known else ""


def read_label(text: str) -> dict[str, int]:
    """The attributes of a label text such as "helpfulness:4,verbosity:2".

    Raises:
        ValueError: a part that is not name:integer.
    """
    parts = [part.strip().partition(":") for part in text.split(",")]
    for name, _, value in parts:
        if not name or not value.lstrip("-").isdigit():
            raise ValueError(f"label {text[:60]!r}: want name:integer,..., found {name + ':' + value!r}")
    return {name: int(value) for name, _, value in parts}


def condition(row: Row, config: Config) -> str:
    """What to append to the last user turn of a training row that has `attributes`: a mapping, or values in our order.

    Raises:
        ValueError: a list of another length than the config's attributes.
    """
    values = row.get("attributes")
    if values is None:
        return ""
    if not isinstance(values, Mapping):
        values = _named(values, config)
    return label(values, config)


def target(config: Config) -> str:
    """What to append to the last user turn in sampling and evaluation."""
    wanted = config.wanted or (config.high,) * len(config.attributes)
    return config.prefix + ",".join(f"{name}:{value}" for name, value in zip(config.attributes, wanted))


def select(candidates: list[Candidate], config: Config, rng: random.Random) -> list[Row]:
    """Every response with its attributes: rows {response, condition}.

    The attributes are the candidate's `attributes`, or its columns of the same names (helpfulness, safety). Where these are
    scores of a Bradley-Terry model, they mean nothing but which of one prompt's responses is better: with scale = ranks the
    share of the prompt's other candidates that a response beats is stretched over the range.

    Raises:
        ValueError: a candidate with none of the attributes.
    """
    rows = []
    usable = eligible(candidates, config.truncated, config.penalty)
    for candidate in usable:
        values = _ranks(candidate, usable, config) if config.scale == "ranks" else candidate
        text = condition(candidate, config) or label(values, config)
        if not text:
            raise ValueError(
                f"steerlm: a candidate has none of {', '.join(config.attributes)}: label the samples first"
            )
        rows.append({"response": candidate["text"], "condition": text})
    return rows


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """`sft.loss` under labelled prompts: policy_logp [B, R] -> nats a token."""
    return sft.loss(forwards, batch, sft.Config())


def _ranks(candidate: Candidate, candidates: Sequence[Candidate], config: Config) -> dict[str, float | None]:
    """The candidate's known scores on the range: `high` where it beats all others, the middle where there are none."""
    found: dict[str, float | None] = {}
    for name in config.attributes:
        mine, others = (
            candidate.get(name),
            [c[name] for c in candidates if c is not candidate and c.get(name) is not None],
        )
        if mine is not None:
            beaten = sum(0.5 if mine == other else float(mine > other) for other in others)
            found[name] = config.low + (config.high - config.low) * (beaten / len(others) if others else 0.5)
    return found


def _named(values: Sequence[float | None], config: Config) -> dict[str, float | None]:
    if len(values) != len(config.attributes):
        raise ValueError(f"steerlm: {len(values)} values for the attributes {', '.join(config.attributes)}")
    return {
        name: None if value is None or math.isnan(value) else value for name, value in zip(config.attributes, values)
    }
