"""What to do when a stage has run out of memory: which setting decides, and which value would fit, in numbers."""

import re
from collections.abc import Mapping
from typing import Any

KNOBS = {
    **dict.fromkeys(("pretrain", "continuing", "train", "reward", "online"), "train_rows"),
    **dict.fromkeys(("annotate", "probe", "sample", "evaluate"), "sample_rows"),
    **dict.fromkeys(("score", "certify", "compare", "matrix", "measure"), "score_rows"),
}  # runtime setting by stage; the others hold no batch of a model
GIB = {"KiB": 2.0**-20, "MiB": 2.0**-10, "GiB": 1.0, "TiB": 2.0**10}
_AMOUNT = r"([\d.]+) (KiB|MiB|GiB|TiB)"
MARGIN = 0.9  # of the memory may be planned with: fragments and the allocator's reserve take the rest


def ran_out(kind: str, message: str) -> bool:
    """Whether a failure, by its exception's name and text, is a lack of memory."""
    return kind in ("OutOfMemoryError", "MemoryError") or "DefaultCPUAllocator: can't allocate memory" in message


def advice(spec: Mapping[str, Any], message: str) -> str:
    """One line: what was found, and the micro-batch to try.

    The rows that would fit are worked out as if all memory grew with the rows, and are at most half of what was tried,
    so that weights and optimizer, which do not grow, are allowed for.

    Args:
        spec: the stage's spec (stage, recipe, runtime).
        message: the allocator's text; CUDA's says how much there is, others only what was wanted.
    """
    knob = KNOBS.get(spec["stage"])
    total = _gib(rf"total capacity of {_AMOUNT}", message)
    held = _gib(rf"process has {_AMOUNT} memory in use", message)
    wanted = _gib(rf"Tried to allocate {_AMOUNT}", message)
    found = "out of memory"
    if total and held and wanted:
        found += f": {held:.1f} GiB in use, {wanted:.1f} GiB more wanted, {total:.1f} GiB there"
    elif match := re.search(r"tried to allocate (\d+) bytes", message):
        found += f": {int(match[1]) / 2**30:.1f} GiB more wanted than this machine gives"
    if knob is None:
        return f"{found}; this stage has no micro-batch: give it a machine with more memory"
    rows = int(spec["runtime"].get(knob, 0)) or int(spec["recipe"].get("batch_size", 0))
    if rows == 1:
        return f"{found} at runtime.{knob} = 1: a smaller model, shorter limits or more memory is needed"
    if not rows:
        return f"{found}; lower runtime.{knob} and run again"
    fits = rows // 2
    if total and held and wanted:
        fits = max(1, min(fits, int(rows * MARGIN * total / (held + wanted))))
    return f"{found} at runtime.{knob} = {rows}; set runtime.{knob} to {fits} and run again"


def _gib(pattern: str, message: str) -> float | None:
    match = re.search(pattern, message)
    return float(match[1]) * GIB[match[2]] if match else None
