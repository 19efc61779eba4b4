"""A stage without memory says which micro-batch would fit."""

import re
from pathlib import Path

import pytest

from tasks.memory import KNOBS, advice, ran_out

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 9.10 GiB is free. "
    "Including non-PyTorch memory, this process has 70.00 GiB memory in use. Of the allocated memory 69.00 GiB is allocated"
)


def spec(stage: str = "train", rows: int = 0, batch: int = 16) -> dict[str, object]:
    return {"stage": stage, "recipe": {"batch_size": batch}, "runtime": {"train_rows": rows, "sample_rows": 256}}


def test_cuda_says_how_much_there_is() -> None:
    found = advice(spec(), CUDA)
    # 16 rows wanted 70 + 20 = 90 GiB; 0.9 x 79.1 / 90 x 16 = 12.7, but at most half: 8
    assert found == (
        "out of memory: 70.0 GiB in use, 20.0 GiB more wanted, 79.1 GiB there at runtime.train_rows = 16; "
        "set runtime.train_rows to 8 and run again"
    )
    far = CUDA.replace("allocate 20.00 GiB", "allocate 1.00 TiB")  # 0.9 x 79.1 / (70 + 1024) x 256 = 16.7
    assert "set runtime.sample_rows to 16 and" in advice(spec("sample"), far)
    assert "set runtime.train_rows to 1 and" in advice(spec(rows=2), far)


def test_one_row_that_does_not_fit_needs_something_else() -> None:
    assert "a smaller model" in advice(spec(rows=1), CUDA)
    assert "no micro-batch" in advice(spec("select"), CUDA)


def test_what_torch_says_on_a_cpu_is_known() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 48)
    assert ran_out("RuntimeError", str(caught.value))
    assert "1048576.0 GiB more wanted" in advice(spec(), str(caught.value))
    assert ran_out(torch.OutOfMemoryError.__name__, "CUDA out of memory.") and ran_out("MemoryError", "")
    assert not ran_out("StageError", "loss nan at step 2: not finite")


def test_every_stage_with_batches_of_a_model_is_told_its_own_setting() -> None:
    """Whoever reads runtime.train_rows, score_rows or sample_rows, itself or through another file, has an entry."""
    engine = Path(__file__).parents[2] / "engine"
    stages = {p.stem for p in engine.glob("*.py") if "def run(job" in p.read_text() and ".runtime." in p.read_text()}
    reading = {
        name for name in stages if re.search(r"\.(train|score|sample)_rows", (engine / f"{name}.py").read_text())
    }
    assert {"compare", "matrix", "measure", "continuing"} <= reading
    assert reading <= set(KNOBS)
    for stage, knob in KNOBS.items():
        assert f"runtime.{knob}" in advice({**spec(stage), "runtime": {knob: 8}}, CUDA)
