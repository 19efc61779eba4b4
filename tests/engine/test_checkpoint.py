from pathlib import Path

import pytest
import torch

from engine.checkpoint import read_into, restore_random, save_random, sums, write_tensors
from engine.errors import StageError


def test_tensors_come_back_bit_for_bit_into_the_same_memory(tmp_path: Path) -> None:
    wanted = {"b": torch.randn(3, 4), "a": torch.randn(5).to(torch.bfloat16)}
    write_tensors(tmp_path / "x.safetensors", wanted)
    held = {"a": torch.zeros(5, dtype=torch.bfloat16), "b": torch.zeros(3, 4)}
    places = {name: tensor.data_ptr() for name, tensor in held.items()}
    read_into(tmp_path / "x.safetensors", held)
    assert all(torch.equal(held[n], wanted[n]) and held[n].data_ptr() == places[n] for n in wanted)
    write_tensors(tmp_path / "y.safetensors", dict(reversed(wanted.items())))
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


@pytest.mark.parametrize(
    "held, said",
    [
        ({"a": torch.zeros(2), "c": torch.zeros(1)}, "differ in c"),
        ({"a": torch.zeros(3)}, r"a is \[2\], want \[3\]"),
    ],
)
def test_another_models_save_point_is_refused(tmp_path: Path, held: dict[str, torch.Tensor], said: str) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    with pytest.raises(StageError, match=said):
        read_into(tmp_path / "x.safetensors", held)


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:  # T57
    own = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    save_random(tmp_path / "random.safetensors", {"noise": own})
    wanted = (torch.randn(3), torch.randn(3, generator=own))
    torch.manual_seed(9)
    fresh = torch.Generator()
    restore_random(tmp_path / "random.safetensors", {"noise": fresh})
    assert torch.equal(torch.randn(3), wanted[0]) and torch.equal(torch.randn(3, generator=fresh), wanted[1])


def test_sums_tell_whether_a_weight_moved() -> None:
    model = torch.nn.Linear(3, 2)
    before = sums(model)
    assert sums(model) == before
    model.bias.data[0] += 1e-6
    assert sums(model) != before
