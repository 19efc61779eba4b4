"""Would the tests of methods/ notice a wrong sign? Break the code in every small way and see whether a test fails.

    python -m benchmarks.mutation                  # all of it; resumes where it stopped
    python -m benchmarks.mutation --shard 1/4      # the second quarter, for several processes
    python -m benchmarks.mutation --only ops,ppo   # some files
    python -m benchmarks.mutation --table          # what is known so far, survivors last

pytest collects tests/methods once; each mutant (benchmarks/mutants.py) is planted in a fork of that process, where the tests
that name its file run first, then those of its method or, for a shared file, all, until one fails. Results are kept by the
digest of file and mutant in .roundhouse/mutation; a survivor is tried again when the tests have changed.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from benchmarks.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "methods"
SECONDS = 300  # for one mutant; a loop without end is killed by it
ALONE = {"__init__", "gatt", "schedules"}  # no method imports them: only the tests that name them can tell
FRESH = (
    "test_listing_and_describing_import_no_torch"  # starts an interpreter, which reads the files: no mutant is there
)
Results = dict[str, dict[str, Any]]  # key -> a line of the results


class Loop:
    """A pytest plugin that runs mutants instead of tests."""

    def __init__(self, wanted: list[Mutant], results: Results, file: Path):
        self.wanted, self.results, self.file = wanted, results, file

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Plant and test every mutant that is not known yet."""
        items = [item for item in session.items if FRESH not in item.nodeid]
        if session.testsfailed or self._run(None, items) != "survived":
            raise pytest.UsageError("the tests fail without a mutant: run pytest tests/methods and mend that first")
        tests = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(TESTS.glob("*.py")))).hexdigest()[:16]
        for number, mutant in enumerate(self.wanted):
            known = self.results.get(mutant.key, {})
            if known.get("outcome") in ("killed", "timeout") or known.get("tests") == tests:
                continue
            start = time.monotonic()
            outcome = self._run(mutant, list(relevant(items, mutant.file)))
            row = {"key": mutant.key, "outcome": outcome, "tests": tests, "file": mutant.file, "line": mutant.line}
            self.results[mutant.key] = row
            with self.file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            done = f"{number + 1}/{len(self.wanted)} {outcome:8} {time.monotonic() - start:5.1f}s"
            print(f"{done} {mutant.file}.py:{mutant.line} {mutant.change}", flush=True)
        return True

    def _run(self, mutant: Mutant | None, items: list[pytest.Item]) -> str:
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os._exit(0 if _pass(mutant, items) else 1)
        status = os.waitpid(child, 0)[1]
        return "timeout" if os.WIFSIGNALED(status) else "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _pass(mutant: Mutant | None, items: list[pytest.Item]) -> bool:
    try:
        if mutant:
            plant(mutant)
        return all(not report.failed for item in items for report in runtestprotocol(item, log=False, nextitem=None))
    except BaseException:  # a mutant that cannot even be imported, or that ends the process, is noticed
        return False


def plant(mutant: Mutant) -> None:
    """Run the mutant in its module's own namespace, and give every importer the new functions for the old ones."""
    module = sys.modules["methods" if mutant.file == "__init__" else f"methods.{mutant.file}"]
    before = dict(vars(module))
    exec(compile(mutant.source, str(module.__file__), "exec"), vars(module))
    new = {
        id(old): vars(module)[name] for name, old in before.items() if callable(old) and vars(module)[name] is not old
    }
    for name, importer in list(sys.modules.items()):
        file = getattr(importer, "__file__", None) or ""
        if name.split(".")[0] == "methods" or file.startswith(str(TESTS)):
            for key, value in list(vars(importer).items()):
                if id(value) in new:
                    setattr(importer, key, new[id(value)])


def relevant(items: list[pytest.Item], file: str) -> Iterator[pytest.Item]:
    """The tests that can notice a mutant of `methods/<file>.py`, the nearest first."""
    near = [item for item in items if file in _imported(item.path)]
    yield from near
    if file in ALONE:
        return
    rest = [item for item in items if item not in near]
    if file == "candidates":  # plain Python behind `select`: no loss reads it
        rest = [item for item in rest if item.path.stem in ("test_preferences", "test_configs")]
    if "class Config" in (ROOT / "methods" / f"{file}.py").read_text(encoding="utf-8"):
        name = file.replace("_", "-")
        rest = [item for item in rest if re.search(rf"[\[-]{name}[-\]]", item.nodeid)]
    yield from sorted(rest, key=lambda item: item.path.stem != "test_oracle")


@cache
def _imported(path: Path) -> frozenset[str]:
    """Which files of methods/ a test file imports by name."""
    found = {"__init__"} if path.stem == "test_slot" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "methods":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("methods."):
            found.add(node.module.removeprefix("methods."))
    return frozenset(found)


def table(results: Results, wanted: list[Mutant]) -> str:
    """Markdown: one line a file, then every survivor."""
    columns = ("killed", "timeout", "survived", "not run")
    counts: dict[str, dict[str, int]] = {}
    for mutant in wanted:
        outcome = results.get(mutant.key, {}).get("outcome", "not run")
        for file in (mutant.file, "all"):
            found = counts.setdefault(file, dict.fromkeys(columns, 0))
            found[outcome] += 1
    lines = ["| file | mutants | killed | timeout | survived | not run |", "|---|---|---|---|---|---|"]
    for file, found in sorted(counts.items(), key=lambda pair: (pair[0] == "all", pair[0])):
        lines.append(f"| {file} | {sum(found.values())} | {' | '.join(str(found[column]) for column in columns)} |")
    survivors = [m for m in wanted if results.get(m.key, {}).get("outcome") == "survived"]
    return "\n".join([*lines, "", *(f"- {m.file}.py:{m.line} {m.change}" for m in survivors)])


def main() -> None:
    """Run what is asked for, then print the table."""
    parser = argparse.ArgumentParser(description="Mutants of methods/ against tests/methods.")
    parser.add_argument("--only", default="", help="files, by comma")
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th mutant from the I-th")
    parser.add_argument("--results", type=Path, default=ROOT / ".roundhouse" / "mutation", help="folder of the results")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    files = [path for path in sorted((ROOT / "methods").glob("*.py")) if not only or path.stem in only]
    wanted = [mutant for path in files for mutant in mutants(path)]
    arguments.results.mkdir(parents=True, exist_ok=True)
    results: Results = {}
    for file in sorted(arguments.results.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            results[row["key"]] = row
    if not arguments.table:
        shard, shards = map(int, arguments.shard.split("/"))
        loop = Loop(wanted[shard::shards], results, arguments.results / f"shard-{shard}-{shards}.jsonl")
        quiet = ["-q", "-s", "--noconftest", "--no-header", "-p", "no:cacheprovider", "-p", "no:terminalreporter"]
        os.chdir(ROOT)
        if pytest.main([*quiet, str(TESTS)], plugins=[loop]) not in (0, 5):
            raise SystemExit("pytest tests/methods does not pass: nothing was run")
    print(table(results, wanted))


if __name__ == "__main__":
    main()
