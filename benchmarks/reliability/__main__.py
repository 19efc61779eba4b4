"""`python -m benchmarks.reliability`: run every check of what the project survives, and write the table of docs/reliability.md.

Results are kept in a folder (--results), so that parts can be run at different times: `TESTS.. [--only EXPRESSION]` runs
only these test files, and of them what the expression chooses, `--kills N` goes on with random kills of campaigns, `--stages
S` with kills of stages for S seconds, `--cost STORE` measures the share of storage in the campaigns of a store,
`--collect` only writes the table. `--short` runs the default tier of the tests. The
tests say through the fixture `tally` how much they tried. A failure, or a check that was never run or tried less than it
must, makes the exit status 1 and is named in the table.
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

from benchmarks.reliability.cost import MOST
from benchmarks.reliability.kinds import CHOSEN
from benchmarks.reliability.stages import lines

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
OVERLAPPED = "stage killed while save points are stored beside its work"
START, END = "<!-- table: made by python -m benchmarks.reliability -->", "<!-- end of table -->"
TESTS = [
    f"tests/storage/test_{name}.py" for name in ("kill", "corruption", "faults", "fuzz", "gc", "lease", "full_disk")
]
TESTS += [
    f"tests/tasks/test_{name}.py" for name in ("campaign_faults", "two_runs", "fuzz_inputs", "commands", "on_a_server")
]
GOALS = {  # check, by the beginning of its name -> (least that must be tried, the goal or what the prototype did)
    **{f"stage killed: {work}": (20, "every point") for work in CHOSEN},
    OVERLAPPED: (20, "every step"),
    "storage of a whole run": (50, "at most 3 % of its CPU seconds"),
    "campaign: killed under server and worker": (100, "200 in both ways"),
    "campaign: killed under `roundhouse run`": (100, "200 in both ways"),
    "30 % of all requests of a campaign to rclone fail": (100, "same root"),
    "30 % of all requests of a campaign to moto fail": (100, "same root"),
    "two runs at once on two workers (folder)": (19, "each stage once"),
    "two runs at once on two workers (moto)": (19, "each stage once"),
    "two runs at once on two workers (rclone)": (19, "each stage once"),
    "killed at a file operation of a stage": (150, "584 of 584"),
    "killed at every": (2, "10 runs; without progress an error"),
    "killed before or after a request to rclone": (36, "36 of 36"),
    "killed before or after a request to moto": (52, "52 of 52"),
    "30 % of all requests to rclone fail": (100, "383-477 requests, 3 of 3 alike"),
    "30 % of all requests to moto fail": (100, "383-477 requests, 3 of 3 alike"),
    "flipped bits to and from rclone": (100, "4 of 4 runs alike"),
    "flipped bits to and from moto": (100, "4 of 4 runs alike"),
    "listings of rclone that miss an object": (4, "2 of 2 runs alike"),
    "listings of moto that miss an object": (4, "2 of 2 runs alike"),
    "stored files damaged": (328, "328 of 328"),
    "four processes at once on folder": (1, "5 of 5 rounds"),
    "four processes at once on moto": (1, "6 of 6 rounds"),
    "writes that a full or failing disk refuses": (10, "4 of 4"),
    "planted secrets": (5, "found nowhere"),
    "results found after the Prefect database was deleted": (7, "none computed"),
    "run of a dead host found out by the server": (1, "Crashed by itself"),
    "malformed manifests": (10_000, "10,000"),
    "malformed save points": (10_000, "10,000"),
    "malformed configs": (10_000, "10,000"),
    "malformed JSON rows": (10_000, "10,000"),
    "malformed Parquet files": (10_000, "10,000"),
    "malformed Parquet sources": (10_000, "10,000"),
    "mutated answers of an S3 server": (10_000, "10,000"),
    **{f"command line: malformed {k}": (50, "50") for k in ("configs", "rows", "parquet", "manifests", "savepoints")},
    "command line: mutated answers": (50, "50"),
}


def run_tests(file: str, short: bool, only: str, results: Path) -> None:
    """Run one test file and keep its tallies and its counts of outcomes, instead of those of an earlier time."""
    stem = "-".join([Path(file).stem, *re.findall(r"\w+", only)])
    tally, report = results / f"{stem}.tally", results / f"{stem}.xml"
    tally.write_text("")
    markers = "not slow and not gpu" if short else "not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", markers, "-k", only, f"--junitxml={report}", file]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env={**os.environ, "ROUNDHOUSE_TALLY": str(tally)}, check=False)
    suite = next(ET.parse(report).getroot().iter("testsuite"))
    counts: dict[str, float] = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    (results / f"{stem}.json").write_text(json.dumps(counts | {"seconds": time.monotonic() - began}))


def of_tests(results: Path) -> list[tuple[str, int, int, str]]:
    """(check, tried, failed, note) of what the tests have counted."""
    rows: dict[str, tuple[int, list[str]]] = {}
    for path in sorted(results.glob("*.tally")):
        for entry in lines(path):
            tried, notes = rows.get(entry["check"], (0, []))
            rows[entry["check"]] = tried + entry["tried"], [*notes, entry["note"]]
    return [(check, tried, 0, "; ".join(filter(None, notes))) for check, (tried, notes) in rows.items()]


def of_stages(results: Path) -> list[tuple[str, int, int, str]]:
    """The same of the kills of stages, a row a kind: states of the store that a kill can leave, and real kills."""
    kept = results / "stages"
    kills, shapes, states = (lines(kept / f"{name}.jsonl") for name in ("kills", "stages", "states"))
    rows = []
    for work in sorted({line["work"] for line in [*shapes, *states]}):
        tried = failed = repeated = 0
        notes = []
        for one in (line for line in states if line["work"] == work):
            points = ", ".join(f"{count} {role}" for role, count in sorted(one["points"].items()))
            notes.append(
                f"{one['tried']} distinct states of {sum(one['points'].values())} points ({points}){_age([one])}"
            )
            tried, failed, repeated = one["tried"], len(one["failures"]), one["repeated"]
        if not notes:
            notes.append("its states: not run")
        for shape in (line for line in shapes if line["work"] == work):
            mine = [kill for kill in kills if kill["work"] == work and kill["killed"]]
            roles = Counter(kill["role"] for kill in mine)
            parts = ", ".join(f"{roles[role]} of {count} {role}" for role, count in sorted(shape["points"].items()))
            notes.append(
                f"{len(mine)} real kills ({parts}){_age(mine)}; at most {shape['longest']} steps may be repeated"
            )
            tried, failed = tried + len(mine), failed + sum(bool(kill["failures"]) for kill in mine)
            repeated = max([repeated, *(kill["repeated"] for kill in mine)])
        rows.append((f"stage killed: {work}", tried, failed, f"{'; '.join(notes)}, {repeated} were"))
    return rows


def _age(kept: list[dict[str, Any]]) -> str:
    """What is said of lines that were counted before the code of today; whoever keeps such lines marks them."""
    return " (an earlier run)" if any(line.get("earlier") for line in kept) else ""


def of_overlapped(results: Path) -> list[tuple[str, int, int, str]]:
    """The same of the kills of stages whose save points are stored beside the work, all kinds together."""
    killed = [kill for kill in lines(results / "stages" / "overlapped-kills.jsonl") if kill["killed"]]
    kinds = ", ".join(f"{count} {work}" for work, count in sorted(Counter(kill["work"] for kill in killed).items()))
    repeated = max((kill["repeated"] for kill in killed), default=0)
    failed = sum(bool(kill["failures"]) for kill in killed)
    note = f"real kills ({kinds}); at most 2 steps may be repeated, {repeated} were{_age(killed)}"
    return [(OVERLAPPED, len(killed), failed, note)] if killed else []


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


def of_cost(results: Path) -> list[tuple[str, int, int, str]]:
    """The same of the share of storage in a campaign's work, a row a campaign."""
    rows = []
    for one in lines(results / "cost.jsonl"):
        note = f"stages of {one['name']}: {one['storage']:.2f} of {one['work']:.0f} CPU s, {one['percent']:.2f} %"
        rows.append(("storage of a whole run", one["stages"], int(one["percent"] > MOST), note))
    return rows


def table(results: Path) -> tuple[str, bool]:
    """The table as Markdown, and whether everything was run as often as it must and ended well."""
    rows = of_stages(results) + of_overlapped(results) + of_campaigns(results) + of_cost(results) + of_tests(results)
    text = ["| check | tried | failed | of what | goal or prototype |", "|---|---|---|---|---|"]
    good = True
    for check, tried, failed, note in rows:
        least, goal = next((goal for name, goal in GOALS.items() if check.startswith(name)), (1, ""))
        few = f" (want {least})" if tried < least else ""
        text.append(f"| {check} | {tried}{few} | {failed} | {note} | {goal} |")
        good = good and not failed and not few and "not run" not in note
    missing = [name for name in GOALS if not any(row[0].startswith(name) for row in rows)]
    text += [f"| {name} | 0 | not run | | {GOALS[name][1]} |" for name in missing]
    counts = Counter[str]()
    for path in results.glob("test_*.json"):
        counts.update(json.loads(path.read_text()))
    bad = counts["failures"] + counts["errors"]
    text += ["", f"{counts['tests']} tests in {counts['seconds'] / 60:.0f} minutes: {bad} failed, {counts['skipped']} skipped. "
             "A test that fails stops before it is counted."]  # fmt: skip
    return "\n".join(text), good and not bad and not missing


def made_run(results: Path) -> str:
    """The store of a `roundhouse run` of the tiny campaign; made now, or goes on."""
    store = (results.absolute() / "run").as_uri()
    subprocess.run([sys.executable, "-m", "cli", "run", "tiny", "--store", store], cwd=ROOT, check=False)
    return store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--only", default="", help="of the tests, as pytest's -k")
    parser.add_argument("--short", action="store_true", help="the default tier of the tests only")
    parser.add_argument("--kills", type=int, default=0, help="random kills of campaigns, half of them on a worker")
    parser.add_argument("--stages", type=float, default=0, help="seconds to kill stages for")
    parser.add_argument("--cost", default="", metavar="STORE", help="the share of storage in this store's campaigns")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, default=ROOT / ".roundhouse" / "reliability")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    everything = not (options.tests or options.kills or options.stages or options.cost or options.collect)
    for file in TESTS if everything else options.tests:
        run_tests(file, options.short, options.only, options.results)
    if kills := 200 if everything else options.kills:
        command = [sys.executable, "-m", "benchmarks.reliability.campaigns", str(options.results)]
        subprocess.run([*command, "--kills", str(kills), "--seconds", "36000"], cwd=ROOT, check=False)
    if seconds := 36000.0 if everything else options.stages:
        for part in (["states"], ["stages", "--others", "12"], ["stages", "--overlapped", "--others", "3"]):
            command = [sys.executable, "-m", f"benchmarks.reliability.{part[0]}", str(options.results / "stages")]
            subprocess.run([*command, *part[1:], "--seconds", str(seconds)], cwd=ROOT, check=False)
    if store := options.cost or (everything and made_run(options.results)):
        kept = options.results / "cost.jsonl"
        subprocess.run([sys.executable, "-m", "benchmarks.reliability.cost", store, str(kept)], cwd=ROOT, check=False)
    made, good = table(options.results)
    print(made)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: f"{START}\n{made}\n{END}", page, flags=re.DOTALL))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
