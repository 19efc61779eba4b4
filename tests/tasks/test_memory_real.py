"""A stage that really runs out of memory: what it is told fits, and then it does."""

import dataclasses
import functools
import os
import re
import resource
from pathlib import Path

import pytest

from benchmarks.reliability.events import in_child
from benchmarks.reliability.forks import Fork
from configs import load
from engine import forkserver
from flows.rounds import align
from storage import open_store
from tasks import Run, launch
from tasks.launch import OutOfMemory
from tasks.stage import produce

MORE = 400 << 20  # bytes beyond what the imports have mapped
ROWS = 2048  # of 64 tokens and 320 logits in float32: 160 MiB for each copy of the logits


@pytest.mark.slow
@pytest.mark.slow_short
def test_a_stage_under_a_real_limit_fits_as_it_was_told(tmp_path: Path, tally) -> None:
    forkserver.preload()
    config, store = load("micro"), open_store(tmp_path / "store")
    run = Run(config, store, config.runtime, mode="plan")
    align(run)
    base = run.artifacts["base"].stage
    stage = dataclasses.replace(base, recipe=base.recipe.model_copy(update={"batch_size": ROWS, "steps": 2}))

    def inputs() -> None:
        launch.use(Fork)
        for ref in stage.input_refs():
            (source,) = [made.stage for made in run.artifacts.values() if made.stage.ref == ref]
            produce(source, store, config.runtime)

    def under_the_limit(rows: int) -> None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE, mapped + MORE))
        launch.use(Fork)  # a fork inherits the limit
        try:
            produce(stage, store, config.runtime.model_copy(update={"train_rows": rows, "save_steps": 0}))
        except OutOfMemory as error:
            (tmp_path / "told").write_text(str(error))
            os._exit(7)

    assert in_child(inputs) == 0
    rows, tried = 0, []
    while code := in_child(functools.partial(under_the_limit, rows)):
        told = (tmp_path / "told").read_text()
        assert code == 7 and "\n" not in told
        found = r"base: out of memory: \d+\.\d GiB more wanted than this machine gives at "
        match = re.fullmatch(
            rf"{found}runtime.train_rows = {rows or ROWS}; set runtime.train_rows to (\d+) and run again", told
        )
        assert match is not None, told
        rows = int(match[1])
        tried.append(rows)
        assert store.manifest(stage.ref) is None
    assert tried and store.manifest(stage.ref) is not None
    tally(
        "stage that ran out of memory",
        len(tried),
        f"times, told each time which micro-batch to try ({tried}); then it fitted",
    )
