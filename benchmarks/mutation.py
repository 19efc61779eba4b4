"""Would the tests of methods/ notice a wrong sign? Break the code in every small way and see whether a test fails.

    python -m benchmarks.mutation                  # all of it; resumes where it stopped
    python -m benchmarks.mutation --shard 1/4      # the second quarter, for several processes
    python -m benchmarks.mutation --only ops,ppo   # some files
    python -m benchmarks.mutation --table          # what is known so far, survivors last

pytest collects tests/methods once and runs it once, noting which functions of methods/ each test enters. Each mutant
(benchmarks/mutants.py) is planted in a fork of that process, where the tests that enter the broken function run until one
fails: those that killed its neighbours first, then the quickest. Results are kept by the digest of file and mutant in
.roundhouse/mutation; a survivor is tried again under the tests that have changed. Mutants come in the order of their digests,
so that an unfinished run is a random sample. benchmarks/equivalent_mutants.yaml says of the survivors that are left why no
test can tell them from the code.
"""

import argparse
import ast
import gc
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from _pytest.runner import runtestprotocol

from benchmarks.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent
ROOM, TESTS = ROOT / "methods", ROOT / "tests" / "methods"
EQUIVALENT = ROOT / "benchmarks" / "equivalent_mutants.yaml"
SECONDS = 60  # of processor time for one mutant; a loop without end is killed by it
FRESH = (
    "test_listing_and_describing_import_no_torch"  # starts an interpreter, which reads the files: no mutant is there
)
Results = dict[str, dict[str, Any]]  # key -> a line of the results
Reached = dict[str, dict[str, Any]]  # test -> {file, of: its digest, seconds, functions: ["ops.gae", ...]}


class Loop:
    """A pytest plugin that runs mutants instead of tests."""

    def __init__(self, wanted: list[Mutant], results: Results, file: Path):
        self.wanted, self.results, self.file = wanted, results, file
        self.kills: dict[str, Counter[str]] = {}  # file -> test -> mutants
        for row in results.values():
            self.kills.setdefault(row["file"], Counter())[row.get("by", "")] += 1

    def pytest_sessionstart(self) -> None:
        """A failing example is enough: look for no smaller one and explain nothing."""
        from hypothesis import Phase, settings  # pytest wants to be there first

        settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Plant and test every mutant that is not known yet."""
        items = {item.nodeid: item for item in session.items if FRESH not in item.nodeid}
        tests = test_files()
        if session.testsfailed:
            raise pytest.UsageError("the tests cannot be collected: run pytest tests/methods and mend that first")
        reached = self._reached(items, tests, self.file.parent / f"reached-{digest(ROOM.glob('*.py'))}.jsonl")
        torch.testing.assert_close(torch.ones(1), torch.ones(1))  # imports sympy, which would take 1.5 s in every fork
        gc.collect()
        gc.freeze()  # a collection in a fork would touch, and so copy, every page of this process
        for number, mutant in enumerate(self.wanted):
            before = self.results.get(mutant.key, {})
            survived = before.get("tests", {})
            if before.get("outcome") in ("killed", "timeout") or survived == tests:
                continue
            spent = children_seconds()
            order = [items[name] for name in self._order(mutant, items, reached)]
            outcome, by = self._run(mutant, [t for t in order if survived.get(t.path.name) != tests[t.path.name]])
            row = {"key": mutant.key, "outcome": outcome, "tests": tests, "file": mutant.file, "by": by}
            self.results[mutant.key] = row
            self.kills.setdefault(mutant.file, Counter())[by] += 1
            with self.file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            done = f"{number + 1}/{len(self.wanted)} {outcome:8} {children_seconds() - spent:5.2f}s"
            print(f"{done} {mutant.file}.py:{mutant.line} {mutant.change}", flush=True)
        return True

    def _reached(self, items: dict[str, pytest.Item], tests: dict[str, str], file: Path) -> Reached:
        """What `reach` found, in a fork, now or before."""
        known = {row["test"]: row for row in read_lines(file) if tests.get(row["file"]) == row["of"]}
        if missing := {name: item for name, item in items.items() if name not in known}:
            child = os.fork()
            if child == 0:
                try:
                    reach(missing, tests, file)
                except SystemExit as error:
                    print(error, flush=True)
                    os._exit(1)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit("pytest tests/methods does not pass: nothing was run")
            known = {row["test"]: row for row in read_lines(file) if tests.get(row["file"]) == row["of"]}
        return known

    def _order(self, mutant: Mutant, items: dict[str, pytest.Item], reached: Reached) -> list[str]:
        """The tests that enter the mutant's function (of a constant: its file); if none does, those that name its file."""
        place = f"{mutant.file}.{mutant.function}"
        if mutant.function:
            inside = {name for name in items if place in reached[name]["functions"]}
        else:
            inside = {
                name for name in items if any(f.startswith(f"{mutant.file}.") for f in reached[name]["functions"])
            }
        if not inside:
            inside = {name for name, item in items.items() if mutant.file in imported(item.path)}
        kills = self.kills.get(mutant.file, Counter())
        return sorted(inside, key=lambda name: (-kills[name], reached[name]["seconds"], name))

    def _run(self, mutant: Mutant, items: list[pytest.Item]) -> tuple[str, str]:
        """killed, survived or timeout; and by which test."""
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
            signal.alarm(30 * SECONDS)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os.write(into, (_killer(mutant, items) or "").encode())
            os._exit(0)
        os.close(into)
        with os.fdopen(out, "rb") as stream:
            by = stream.read().decode()
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return "timeout", ""
        return ("killed", by) if by else ("survived", "")


def children_seconds() -> float:
    """Processor time of the forks that have ended."""
    return sum(os.times()[2:4])


def _killer(mutant: Mutant, items: list[pytest.Item]) -> str | None:
    """The first test that fails under the mutant."""
    try:
        plant(mutant)
    except BaseException:  # a mutant that cannot even be imported is noticed
        return "import"
    for item in items:
        try:
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                return item.nodeid
        except BaseException:  # one that ends the process, too
            return item.nodeid
    return None


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


def reach(items: dict[str, pytest.Item], tests: dict[str, str], file: Path) -> None:
    """Run every test without a mutant and write down which functions of methods/ it enters and how long it takes.

    Raises:
        SystemExit: a test fails; names it.
    """
    found: set[str] = set()
    sys.modules["reached"] = ModuleType("reached")
    sys.modules["reached"].__dict__["add"] = found.add
    for path in sorted(ROOM.glob("*.py")):
        if path.stem == "__init__" or f"methods.{path.stem}" in sys.modules:
            plant(Mutant(path.stem, "", 0, "", 0, marked(path)))
    with file.open("a", encoding="utf-8") as stream:
        for name, item in items.items():
            found.clear()
            start = time.process_time()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                raise SystemExit(f"{name} fails without a mutant: mend that first")
            seconds = round(time.process_time() - start, 3)
            of = {"file": item.path.name, "of": tests[item.path.name]}
            row = {"test": name, **of, "seconds": seconds, "functions": sorted(found)}
            stream.write(json.dumps(row) + "\n")
            stream.flush()


def marked(path: Path) -> str:
    """The file's source, every function of which says that it is entered."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in inside:
            if isinstance(function, ast.FunctionDef):
                name = function.name if function is node else f"{node.name}.{function.name}"
                mark = ast.parse(f"__import__('reached').add('{path.stem}.{name}')").body
                function.body = mark + function.body
    return ast.unparse(ast.fix_missing_locations(tree))


@cache
def imported(path: Path) -> frozenset[str]:
    """Which files of methods/ a test file imports by name."""
    found = {"__init__"} if path.stem == "test_slot" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "methods":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("methods."):
            found.add(node.module.removeprefix("methods."))
    return frozenset(found)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; of one cut off in the middle of a line the whole ones."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(files))).hexdigest()[:16]


def test_files() -> dict[str, str]:
    """Each test file's digest, with the helpers of the folder."""
    helpers = [path for path in TESTS.glob("*.py") if not path.name.startswith("test_")]
    return {path.name: digest([path, *helpers]) for path in TESTS.glob("test_*.py")}


def read_equivalent() -> dict[str, str]:
    """place -> why no test can tell this mutant from the code; the file has it by reason."""
    reasons = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}
    return {place: reason for reason, places in reasons.items() for place in places}


def table(results: Results, wanted: list[Mutant], equivalent: dict[str, str]) -> str:
    """Markdown: one line a file, then how many survivors each reason explains, then those without one."""
    columns = ("killed", "timeout", "explained", "survived", "not run")
    counts: dict[str, dict[str, int]] = {}
    left: list[str] = []
    told: Counter[str] = Counter()
    for mutant in sorted(wanted, key=lambda mutant: mutant.place):
        outcome = results.get(mutant.key, {}).get("outcome", "not run")
        if outcome == "survived" and mutant.place in equivalent:
            outcome = "explained"
            told[equivalent[mutant.place]] += 1
        elif outcome == "survived":
            left.append(f"- {mutant.file}.py:{mutant.line} `{mutant.place}`")
        for file in (mutant.file, "all"):
            counts.setdefault(file, dict.fromkeys(columns, 0))[outcome] += 1
    lines = [f"| file | mutants | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for file, found in sorted(counts.items(), key=lambda pair: (pair[0] == "all", pair[0])):
        lines.append(f"| {file} | {sum(found.values())} | {' | '.join(str(found[column]) for column in columns)} |")
    reasons = [f"- {number}: {reason}" for reason, number in told.most_common()]
    return "\n".join([*lines, "", *(["Explained:", "", *reasons, ""] if reasons else []), *left])


def main() -> None:
    """Run what is asked for, then print the table."""
    parser = argparse.ArgumentParser(description="Mutants of methods/ against tests/methods.")
    parser.add_argument("--only", default="", help="files, by comma")
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th mutant from the I-th")
    parser.add_argument("--results", type=Path, default=ROOT / ".roundhouse" / "mutation", help="folder of the results")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    files = [path for path in sorted(ROOM.glob("*.py")) if not only or path.stem in only]
    # by digest: what is done of an unfinished run is a fair sample
    wanted = sorted((mutant for path in files for mutant in mutants(path)), key=lambda mutant: mutant.key)
    arguments.results.mkdir(parents=True, exist_ok=True)
    results: Results = {}
    for file in sorted(arguments.results.glob("shard-*.jsonl")):
        results |= {row["key"]: row for row in read_lines(file)}
    if not arguments.table:
        shard, shards = map(int, arguments.shard.split("/"))
        loop = Loop(wanted[shard::shards], results, arguments.results / f"shard-{shard}-{shards}.jsonl")
        quiet = ["-q", "-s", "--noconftest", "--no-header", "-p", "no:cacheprovider", "-p", "no:terminalreporter"]
        os.chdir(ROOT)
        if pytest.main([*quiet, "--tb=native", str(TESTS)], plugins=[loop]) not in (0, 5):
            raise SystemExit("pytest tests/methods does not pass: nothing was run")
    print(table(results, wanted, read_equivalent()))


if __name__ == "__main__":
    main()
