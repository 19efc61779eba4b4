"""engine.idle: where frozen models lie."""

import pytest
import torch

from engine.idle import awake


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_are_on_the_device_inside_and_back_afterwards_without_a_copy(device: str) -> None:
    model = torch.nn.BatchNorm1d(3).requires_grad_(False)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with awake([model], device):
        assert {t.device.type for t in model.state_dict().values()} == {device}
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
