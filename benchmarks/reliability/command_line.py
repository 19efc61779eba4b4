"""Malformed files given to the real command line, each call in a fork of a process that has everything imported.

`python -m benchmarks.reliability.command_line KIND FOLDER COUNT` prints one JSON line {"exit": {code: calls}, "bad": [..]}.
KIND: configs (`plan FILE`), rows and parquet (`engine.run`, the stage that reads them), manifests (`plan` and `verify` on a
store with one finished stage), savepoints (`gc` on a store with one), answers (`plan` on the store of ROUNDHOUSE_STORE).
A call is bad if it printed a traceback as its message, told more than one line, ended by a signal or a code other than
0, 1 (of a stage) or 2, or took more than 20 s of the processor.
"""

import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import cli.main
import cli.plan  # imported here so that no fork imports it again, nor Prefect, which takes 5 s
import engine.ingest
import engine.run
import flows.bakeoff  # noqa: F401
import storage.verify  # noqa: F401
from benchmarks.reliability.events import in_child
from benchmarks.reliability.forks import Fork
from benchmarks.reliability.mutate import cases, mutated_bytes, mutated_tree
from configs import load
from configs.load import find
from engine import forkserver
from flows.rounds import align
from storage import open_store
from tasks import Run, launch
from tasks.stage import produce

ROW = {"prompt": "Hello?", "chosen": "Good day.", "rejected": "What", "margin": 0.5, "is_safety": False}
LIMIT = 20.0  # processor seconds a call
Call = tuple[str, Callable[[], object]]  # what it is, for the report; the call itself


def command(*words: str) -> None:
    """`roundhouse WORDS`; ends this process with its exit code."""
    sys.argv = ["roundhouse", *words]
    cli.main.main()


def configs(folder: Path, count: int) -> Iterator[Call]:
    good, draw, file = find("micro").read_bytes(), random.Random(31), folder / "bad.yaml"
    tree = yaml.safe_load(good)
    for number in range(count):
        changed = json.dumps(mutated_tree(tree, draw)).encode(errors="replace")
        file.write_bytes(mutated_bytes(good, draw) if number % 2 else changed)
        yield f"config {number}", lambda: command("plan", str(file), "--store", str(folder / "store"))


def rows(folder: Path, count: int) -> Iterator[Call]:
    draw, good = random.Random(32), (json.dumps(ROW) + "\n").encode() * 5
    for number in range(count):
        (folder / "bad.jsonl").write_bytes(mutated_bytes(good, draw))
        yield f"rows {number}", lambda number=number: _ingest(folder, "bad.jsonl", number)


def parquet(folder: Path, count: int) -> Iterator[Call]:
    draw, file = random.Random(33), folder / "bad.parquet"
    pq.write_table(pa.Table.from_pylist([ROW] * 5), file)
    good = file.read_bytes()
    for number in range(count):
        file.write_bytes(mutated_bytes(good, draw)[:-4] + b"PAR1")
        yield f"parquet {number}", lambda number=number: _ingest(folder, "bad.parquet", number)


def _ingest(folder: Path, name: str, number: int) -> None:
    os.environ["ROUNDHOUSE_DATA"] = str(folder)
    out = folder / f"out{number}"
    out.mkdir()
    recipe = {"rows": "preferences", "sources": [{"path": name}]}
    spec = {"stage": "ingest", "label": "bad", "recipe": recipe, "inputs": {}, "store": str(folder / "store")}
    sys.exit(engine.run.main({**spec, "ref": "rows/ingest-0", "out": str(out), "runtime": {}, "save": False}))


def manifests(folder: Path, count: int) -> Iterator[Call]:
    store, key = _store_with_one_stage(folder)
    location = folder / "store" / "artifacts" / key / "manifest.json"
    for number, data in enumerate(cases(location.read_bytes(), count, 34)):
        location.write_bytes(data)
        words = ("plan", "micro") if number % 2 else ("verify", "micro")
        yield f"manifest {number}", lambda words=words: command(*words, "--store", store)


def savepoints(folder: Path, count: int) -> Iterator[Call]:
    from storage import Ref

    store = _store_with_one_stage(folder)[0]
    ref = Ref("model", "train", "0123456789abcdef")
    (folder / "point").mkdir()
    (folder / "point" / "state.json").write_text("{}")
    open_store(store).save_points(ref).save(3, folder / "point", {})
    location = folder / "store" / "savepoints" / ref.key / "000001.json"
    for number, data in enumerate(cases(location.read_bytes(), count, 35)):
        location.write_bytes(data)
        yield f"save point {number}", lambda: command("gc", "--store", store)


def answers(folder: Path, count: int) -> Iterator[Call]:
    for number in range(count):
        yield f"answer {number}", lambda: command("plan", "micro", "--store", os.environ["ROUNDHOUSE_STORE"])


def _store_with_one_stage(folder: Path) -> tuple[str, str]:
    """A store in which the campaign has one finished stage; returns its URL and the stage's key."""
    config = load("micro")
    store = open_store(folder / "store")
    run = Run(config, store, config.runtime, mode="plan")
    align(run)
    stage = run.artifacts["demonstrations"].stage

    def make() -> None:
        launch.use(Fork)
        produce(stage, store, config.runtime)
        run.record.note(stage.label, stage.ref)

    assert in_child(make) == 0
    return store.url, stage.ref.key


def attempt(call: Callable[[], object], log: Path) -> int:
    """Call in a fork whose output goes to `log`; returns the exit code."""

    def work() -> None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        try:
            call()
        except SystemExit as leave:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(leave.code if isinstance(leave.code, int) else 1)

    return in_child(work)


def wrong(kind: str, code: int, text: str, seconds: float) -> str | None:
    """What is wrong with how a call ended, or None."""
    if seconds > LIMIT:
        return f"took {seconds:.0f} s"
    if kind in ("rows", "parquet"):  # the traceback belongs into a stage's log; its last line is the message
        last = json.loads(text.splitlines()[-1])
        if code not in (0, 1) or (code == 1 and (last["event"] != "failed" or last["kind"] != "StageError")):
            return f"exit code {code}: {text[-300:]}"
        return None
    told = [line for line in text.splitlines() if line.startswith("error: ")]
    if (
        code not in (0, 1, 2)
        or "Traceback" in text
        or "ROUNDHOUSE_DEBUG" in text
        or len(told) > 1
        or (code == 2 and not told)
    ):
        return f"exit code {code}: {text[-300:]}"
    return None


def _spent() -> float:
    """Processor seconds of all forks so far: a busy machine makes every call slow."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(kind: str, folder: Path, count: int) -> int:
    made = {f.__name__: f for f in (configs, rows, parquet, manifests, savepoints, answers)}[kind]
    if kind in ("rows", "parquet"):
        forkserver.preload()  # what a stage needs; each fork would import it again
    codes: Counter[int] = Counter()
    bad: list[str] = []
    for name, call in made(folder, count):
        began = _spent()
        code = attempt(call, folder / "output")
        codes[code] += 1
        if problem := wrong(kind, code, (folder / "output").read_text(errors="replace"), _spent() - began):
            bad.append(f"{name}: {problem}")
    print(json.dumps({"exit": codes, "bad": bad}))
    return 1 if bad or codes.total() != count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
