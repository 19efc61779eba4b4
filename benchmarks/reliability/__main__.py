"""`python -m benchmarks.reliability`: run every check of what the project survives, and write the table of docs/reliability.md.

`--short` runs the default tier only. The tests say through the fixture `tally` how much they tried; a test that failed, or a
check that tried nothing, makes the exit status 1 and is named in the table.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOMS = ("tests/storage/test_kill.py", "tests/storage/test_corruption.py", "tests/storage/test_faults.py")
ROOMS += ("tests/storage/test_fuzz.py", "tests/storage/test_gc.py", "tests/storage/test_lease.py")
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
START, END = "<!-- table: made by python -m benchmarks.reliability -->", "<!-- end of table -->"


def run(tests: list[str], short: bool, folder: Path) -> tuple[list[dict[str, object]], dict[str, int], float]:
    """Run the tests; return their tallies, the counts of outcomes, and the seconds it took."""
    tally, report = folder / "tally", folder / "report.xml"
    tally.touch()
    markers = "not slow and not gpu" if short else "not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", markers, f"--junitxml={report}", *tests]
    began = time.monotonic()
    subprocess.run(command, env={**os.environ, "ROUNDHOUSE_TALLY": str(tally)}, check=False)
    suite = next(ET.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return [json.loads(line) for line in tally.read_text().splitlines()], counts, time.monotonic() - began


def table(tallies: list[dict[str, object]], counts: dict[str, int], seconds: float) -> str:
    """Return the table as Markdown: one row a check, with what its tests tried together."""
    rows: dict[str, tuple[int, list[str]]] = {}
    for entry in tallies:
        tried, notes = rows.get(str(entry["check"]), (0, []))
        rows[str(entry["check"])] = tried + int(str(entry["tried"])), [*notes, str(entry["note"])]
    lines = ["| check | tried | of what |", "|---|---|---|"]
    lines += [f"| {check} | {tried} | {'; '.join(filter(None, notes))} |" for check, (tried, notes) in rows.items()]
    bad = counts["failures"] + counts["errors"]
    lines.append("")
    lines.append(
        f"{counts['tests']} tests in {seconds / 60:.0f} minutes: {bad} failed, {counts['skipped']} skipped. A check that "
        "fails stops before it is counted, so every number above is of cases that ended well."
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the default tier only")
    parser.add_argument("tests", nargs="*", default=list(ROOMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tallies, counts, seconds = run(options.tests, options.short, Path(folder))
    made = table(tallies, counts, seconds)
    print(made)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: f"{START}\n{made}\n{END}", page, flags=re.DOTALL))
    return 1 if counts["failures"] + counts["errors"] or not tallies else 0


if __name__ == "__main__":
    sys.exit(main())
