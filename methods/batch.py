"""What a method sees: response coordinates [B, R] only. Padding, packing and prompt sharing are the loop's secret."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

Forwards = Mapping[str, Tensor]
Metrics = dict[str, tuple[Tensor, Tensor]]  # name: (sum [], count []), both detached fp32
State = dict[str, float]


@dataclass(frozen=True, eq=False)
class Batch:
    """A flat batch of B responses, at most R tokens each. The responses of one row are contiguous and share `group`."""

    mask: Tensor  # [B, R] bool, 1 on response tokens, EOS among them
    group: Tensor  # [B] int64, index of the row in this step
    rank: Tensor  # [B] int64, position in the row; a pair: 0 = chosen, 1 = rejected
    score: Tensor  # [B] fp32, 0 where absent
    grade: (
        Tensor  # [B] fp32, 0 (negligibly better, unsure, absent) .. 3 (significantly better), the same in a whole row
    )
    label: Tensor  # [B, A] fp32, attributes in the order of the config; reward: [B, 1], 1 = the response is safe
    label_mask: Tensor  # [B, A] bool, 1 where the label is known
    weight: Tensor  # [B] fp32, 1 where absent
    progress: float  # 0 at the first optimizer step, 1 at the last
    count: Tensor  # [] fp32, denominator of the whole optimizer step in the method's unit

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.dim() != 2:
            raise ValueError(f"want mask [B, R] bool, found {list(self.mask.shape)} {self.mask.dtype}")
        rows = self.mask.shape[0]
        for name in ("group", "rank", "score", "grade", "weight"):
            if (found := getattr(self, name)).shape != (rows,):
                raise ValueError(f"want {name} [{rows}], found {list(found.shape)}")
        if self.label.shape[:1] != (rows,) or self.label.shape != self.label_mask.shape:
            found = f"{list(self.label.shape)} and {list(self.label_mask.shape)}"
            raise ValueError(f"want label and label_mask of one shape [{rows}, A], found {found}")


@dataclass(frozen=True, eq=False)
class Rollout:
    """One iteration's sampled responses of all ranks, frozen: what `signal` turns into a training signal."""

    mask: Tensor  # [B, R] bool, 1 on response tokens, EOS among them
    old_logp: Tensor  # [B, R] fp32, of the policy that sampled
    reference_logp: Tensor  # [B, R] fp32
    score: Tensor  # [B] fp32, raw combined reward
    finished: Tensor  # [B] bool, 1 where the response has its EOS
    group: Tensor  # [B] int64, index of the prompt
    value: Tensor | None = None  # [B, R] fp32, of the critic before this iteration's updates
    branch: Tensor | None = None  # [B] int64, piecewise rule: 0 = under the safety threshold, 1 = the rest
    baseline_score: Tensor | None = None  # [B] fp32, raw reward of the greedy response to the same prompt
    baseline_finished: Tensor | None = None  # [B] bool, 1 where that has its EOS; None = all have

    def __post_init__(self) -> None:
        rows = self.mask.shape[0]
        if not bool(self.mask.any(-1).all()):
            empty = (~self.mask.any(-1)).nonzero().flatten().tolist()
            raise ValueError(f"responses {empty} have no token: drop them before the method sees them")
        for name in ("old_logp", "reference_logp", "value"):
            if (found := getattr(self, name)) is not None and found.shape != self.mask.shape:
                raise ValueError(f"want {name} {list(self.mask.shape)}, found {list(found.shape)}")
        for name in ("score", "finished", "group", "branch", "baseline_score", "baseline_finished"):
            if (found := getattr(self, name)) is not None and found.shape != (rows,):
                raise ValueError(f"want {name} [{rows}], found {list(found.shape)}")


def batch_of(
    mask: Tensor,
    *,
    group: Tensor | None = None,
    rank: Tensor | None = None,
    score: Tensor | None = None,
    grade: Tensor | None = None,
    label: Tensor | None = None,
    label_mask: Tensor | None = None,
    weight: Tensor | None = None,
    progress: float = 0.0,
    count: Tensor | None = None,
) -> Batch:
    """Build a Batch from what there is: every response a row of its own, scores and grades 0, weights 1.

    Args:
        mask: [B, R] bool.
        count: [] of the whole step; the response tokens of this batch where it is not given.
    """
    rows, device = mask.shape[0], mask.device
    zeros = torch.zeros(rows, device=device)
    label = torch.zeros(rows, 0, device=device) if label is None else label.float()
    return Batch(
        mask=mask,
        group=torch.arange(rows, device=device) if group is None else group,
        rank=torch.zeros(rows, dtype=torch.int64, device=device) if rank is None else rank,
        score=zeros if score is None else score.float(),
        grade=zeros if grade is None else grade.float(),
        label=label,
        label_mask=torch.ones_like(label, dtype=torch.bool) if label_mask is None else label_mask,
        weight=torch.ones_like(zeros) if weight is None else weight.float(),
        progress=progress,
        count=mask.sum().float() if count is None else count.float(),
    )


def denominator(method: ModuleType, batch: Batch) -> Tensor:
    """What this micro-batch adds to `batch.count` of its optimizer step: [] fp32.

    Args:
        method: a loaded method: its own `count` where it has one, else its `unit`.
        batch: any Batch; its `count` is not read.
    """
    if hasattr(method, "count"):
        return cast(Tensor, method.count(batch)).float()
    if method.unit == "token":
        return batch.mask.sum().float()
    return (batch.group.bincount() > 0).sum().float()
