"""`python -m benchmarks.reliability`: run every check of what the project survives, and write the table of docs/reliability.md.

Results are kept in a folder (--results), so that parts can be run at different times: `TESTS..` runs only these test
files, `--kills N` goes on with random kills of campaigns, `--stages S` with kills of stages for S seconds, `--collect`
only writes the table. `--short` runs the default tier of the tests. The tests say through the fixture `tally` how much
they tried. A failure, or a check that was never run or tried nothing, makes the exit status 1 and is named in the table.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
START, END = "<!-- table: made by python -m benchmarks.reliability -->", "<!-- end of table -->"
TESTS = [f"tests/storage/test_{name}.py" for name in ("kill", "corruption", "faults", "fuzz", "gc", "lease")]
TESTS += [
    f"tests/tasks/test_{name}.py" for name in ("stage_kills", "campaign_faults", "two_runs", "fuzz_inputs", "commands")
]
KINDS = ["v2", "v0", "base", "r1-helpfulness", "r1-annotate", "r1-sample", "r1-score", "r1-select", "r1-probe"]
KINDS += ["v2-evaluate", "compare", "demonstrations"]  # one stage of each kind
GOALS = {  # check, by the beginning of its name -> goal, or what the prototype did
    "killed at a file operation": "584 of 584",
    "killed before or after a request to rclone": "36 of 36",
    "killed before or after a request to moto": "52 of 52",
    "killed at every": "10 runs; without progress an error",
    "stage killed at": "every point, every kind",
    "campaign: killed": "200",
    "30 % of all requests to": "383-477 requests, 3 of 3 alike",
    "30 % of all requests of a campaign": "same root",
    "flipped bits": "4 of 4 runs alike",
    "listings": "2 of 2 runs alike",
    "stored files damaged": "328 of 328",
    "malformed": "10,000",
    "mutated answers": "10,000",
    "command line": "50",
    "two runs at once": "each stage once",
}


def run_tests(file: str, short: bool, results: Path) -> None:
    """Run one test file and keep its tallies and its counts of outcomes, instead of those of an earlier time."""
    stem = Path(file).stem
    tally, report = results / f"{stem}.tally", results / f"{stem}.xml"
    tally.write_text("")
    markers = "not slow and not gpu" if short else "not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", markers, f"--junitxml={report}", file]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env={**os.environ, "ROUNDHOUSE_TALLY": str(tally)}, check=False)
    suite = next(ET.parse(report).getroot().iter("testsuite"))
    counts: dict[str, float] = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    (results / f"{stem}.json").write_text(json.dumps(counts | {"seconds": time.monotonic() - began}))


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def of_tests(results: Path) -> list[tuple[str, int, int, str]]:
    """(check, tried, failed, note) of what the tests have counted."""
    rows: dict[str, tuple[int, list[str]]] = {}
    for path in sorted(results.glob("*.tally")):
        for entry in lines(path):
            tried, notes = rows.get(entry["check"], (0, []))
            rows[entry["check"]] = tried + entry["tried"], [*notes, entry["note"]]
    return [(check, tried, 0, "; ".join(filter(None, notes))) for check, (tried, notes) in rows.items()]


def of_stages(results: Path) -> list[tuple[str, int, int, str]]:
    """The same of the kills of stages, a row a kind of stage."""
    kills, shapes = lines(results / "stages" / "kills.jsonl"), lines(results / "stages" / "stages.jsonl")
    rows = []
    for shape in shapes:
        mine = [kill for kill in kills if kill["label"] == shape["label"] and kill["killed"]]
        roles = Counter(kill["role"] for kill in mine)
        parts = [f"{roles[role]} of {count} {role}" for role, count in shape["points"].items()]
        repeated = max((kill["repeated"] for kill in mine), default=0)
        note = f"{', '.join(parts)}; at most {repeated} steps repeated, {shape['longest']} allowed"
        rows.append((f"stage killed at: {shape['work']}", len(mine), sum(bool(k["failures"]) for k in mine), note))
    return rows


def of_campaigns(results: Path) -> list[tuple[str, int, int, str]]:
    """The same of the kills of whole campaigns, a row for what was killed."""
    rows = []
    for mode, how in (("deployed", "server and worker"), ("local", "`roundhouse run`")):
        ended = lines(results / f"{mode}.jsonl")
        kills = Counter(target for campaign in ended for target, _ in campaign["kills"])
        bad = sum(not campaign["same"] or bool(campaign["problem"]) for campaign in ended)
        note = f"{', '.join(f'{count} {target}' for target, count in sorted(kills.items()))}; {len(ended)} campaigns, "
        note += f"{sum(campaign['same'] for campaign in ended)} with the undisturbed root"
        rows.append((f"campaign: killed under {how}", kills.total(), bad, note))
    return rows


def table(results: Path) -> tuple[str, bool]:
    """The table as Markdown, and whether everything was run and ended well."""
    rows = of_stages(results) + of_campaigns(results) + of_tests(results)
    missing = [name for name in GOALS if not any(row[0].startswith(name) and row[1] for row in rows)]
    text = ["| check | tried | failed | of what | goal or prototype |", "|---|---|---|---|---|"]
    for check, tried, failed, note in rows:
        goal = next((goal for name, goal in GOALS.items() if check.startswith(name)), "")
        text.append(f"| {check} | {tried} | {failed} | {note} | {goal} |")
    text += [f"| {name} | 0 | not run | | {GOALS[name]} |" for name in missing]
    counts = Counter[str]()
    for path in results.glob("test_*.json"):
        counts.update(json.loads(path.read_text()))
    bad = counts["failures"] + counts["errors"] + sum(row[2] for row in rows)
    text += ["", f"{counts['tests']} tests in {counts['seconds'] / 60:.0f} minutes: {counts['failures'] + counts['errors']} "
             f"failed, {counts['skipped']} skipped. A test that fails stops before it is counted."]  # fmt: skip
    return "\n".join(text), not bad and not missing and all(row[1] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--short", action="store_true", help="the default tier of the tests only")
    parser.add_argument("--kills", type=int, default=0, help="random kills of campaigns, half of them on a worker")
    parser.add_argument("--stages", type=float, default=0, help="seconds to kill stages for")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, default=ROOT / ".roundhouse" / "reliability")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    everything = not (options.tests or options.kills or options.stages or options.collect)
    for file in TESTS if everything else options.tests:
        run_tests(file, options.short, options.results)
    if kills := 200 if everything else options.kills:
        for mode in ("deployed", "local"):
            command = [sys.executable, "-m", "benchmarks.reliability.campaigns", str(options.results / f"{mode}.jsonl")]
            command += ["--mode", mode, "--kills", str(kills // 2), "--seconds", "36000"]
            subprocess.run(command, cwd=ROOT, check=False)
    if seconds := 36000.0 if everything else options.stages:
        command = [sys.executable, "-m", "benchmarks.reliability.stages", str(options.results / "stages")]
        subprocess.run([*command, "--seconds", str(seconds), "--only", *KINDS], cwd=ROOT, check=False)
    made, good = table(options.results)
    print(made)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: f"{START}\n{made}\n{END}", page, flags=re.DOTALL))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
