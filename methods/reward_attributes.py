"""Attribute model: one regression head an attribute (helpfulness, verbosity, ...), squared error on the known ones.

Source: Dong et al. 2023 (SteerLM), step 1, in NeMo-Aligner's form: a regression, where the paper's model writes the numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods import ops
from methods.batch import Batch, Forwards, Metrics

loop = "offline"
unit = "row"
columns = ("responses", "attributes")
forwards = ("reward",)  # [B, A], one head an attribute


@dataclass(frozen=True)
class Config:
    """Names and range: the order of the names is the order of heads and labels."""

    attributes: tuple[str, ...] = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # HelpSteer
    low: int = 0  # NeMo-Aligner
    high: int = 4  # NeMo-Aligner

    def __post_init__(self) -> None:
        if not self.attributes or len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"reward-attributes: attributes {self.attributes}: want at least one, each once")
        if self.low >= self.high:
            raise ValueError(f"reward-attributes: range {self.low} .. {self.high}: want low < high")


def count(batch: Batch) -> Tensor:
    """Known labels."""
    return batch.label_mask.sum()


def loss(forwards: Forwards, batch: Batch, config: Config) -> tuple[Tensor, Metrics]:
    """Mean squared error of the known labels, in squared levels.

    Args:
        forwards: reward [B, A], in levels.
        batch: label, label_mask [B, A]; count = known labels of the step.

    Returns:
        loss [] a label; metrics squared_error, and for each attribute error_<name> (absolute) and exact_<name> (rounded
        and clipped prediction = label).

    Raises:
        ValueError: not one head and one label column an attribute.
    """
    wanted = (batch.mask.shape[0], len(config.attributes))
    if forwards["reward"].shape != wanted or batch.label.shape != wanted:
        found = f"reward {list(forwards['reward'].shape)}, label {list(batch.label.shape)}"
        raise ValueError(f"reward-attributes: want {list(wanted)} for {', '.join(config.attributes)}; found {found}")
    reward = forwards["reward"].float()
    error = torch.where(batch.label_mask, reward - batch.label, 0.0)
    total = error.square().sum()
    metrics = {"squared_error": ops.measure(total, batch.label_mask.sum())}
    exact = batch.label_mask & ((reward + 0.5).floor().clamp(config.low, config.high) == batch.label)
    for i, name in enumerate(config.attributes):
        known = batch.label_mask[:, i].sum()
        metrics[f"error_{name}"] = ops.measure(error[:, i].abs().sum(), known)
        metrics[f"exact_{name}"] = ops.measure(exact[:, i].sum(), known)
    return ops.share(total, batch.count), metrics
