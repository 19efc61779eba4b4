"""Next-token losses: by hand."""

import pytest
import torch
from torch import tensor

from methods import pretrain, sft
from methods.batch import batch_of


@pytest.mark.parametrize(("method", "second"), [(sft, "response_length"), (pretrain, "tokens")])
def test_global_token_mean(method, second: str) -> None:
    """Two tokens at loss 1 and eight at loss 2 make 1.8; the mean of two means would be 1.5 (METHODS 0.3)."""
    mask = torch.arange(8) < tensor([[2], [8]])
    forwards = {"policy_logp": tensor([[-1.0], [-2.0]]).expand(2, 8)}
    total, metrics = method.loss(forwards, batch_of(mask), method.Config())
    assert float(total) == pytest.approx(1.8)
    assert metrics.keys() == {"nll", second}
    assert [float(v) for v in metrics["nll"]] == [18, 10]
    assert [float(v) for v in metrics[second]] == [10, 2]
