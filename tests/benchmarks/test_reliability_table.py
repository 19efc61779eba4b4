"""benchmarks.reliability: the table counts what was kept, and what was run too little or never fails."""

import json
from pathlib import Path

from benchmarks.reliability.__main__ import GOALS, table


def _fill(folder: Path, failures: list[str], same: bool, few: int = 0, percent: float = 3.0) -> None:
    (folder / "stages").mkdir()
    works = [name.removeprefix("stage killed: ") for name in GOALS if name.startswith("stage killed: ")]
    lines: dict[str, list[object]] = {"stages": [], "kills": [], "states": []}
    for work in works:
        wrong, points = (failures if work == "train" else []), {"child": 9, "step": 2}
        lines["stages"].append({"work": work, "points": points, "steps": 2, "saves": 1, "longest": 1})
        kill = {"work": work, "role": "child", "number": 3, "killed": True, "repeated": 1, "failures": wrong}
        lines["kills"] += [kill, {**kill, "number": 4, "killed": False}]
        state = {
            "earlier": work == "rank",
            "work": work,
            "points": points,
            "tried": 25,
            "elsewhere": 2,
            "repeated": 0,
            "allowed": 1,
            "failures": [],
        }
        lines["states"].append(state)
    for name, made in lines.items():
        (folder / "stages" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    campaign = {"kills": [["worker", 1.0], ["stage", 2.0]] * 50, "same": same, "problem": ""}
    for mode in ("deployed", "local"):
        (folder / f"{mode}.jsonl").write_text(json.dumps(campaign) + "\n")
    beside = [{"work": "train", "killed": number > 0, "repeated": 2, "failures": []} for number in range(21)]
    (folder / "stages" / "overlapped-kills.jsonl").write_text("".join(json.dumps(line) + "\n" for line in beside))
    cost = {"name": "tiny-0", "stages": 50, "work": 97.0, "storage": 3.0, "percent": percent}
    (folder / "cost.jsonl").write_text(json.dumps(cost) + "\n")
    others = {
        name: least for name, (least, _) in GOALS.items() if not name.startswith(("stage", "campaign", "storage"))
    }
    tallies = [json.dumps({"check": name, "tried": least - few, "note": ""}) for name, least in others.items()]
    (folder / "test_x.tally").write_text("\n".join(tallies) + "\n")
    counts = {"tests": 3, "failures": 0, "errors": 0, "skipped": 1, "seconds": 60.0}
    (folder / "test_x.json").write_text(json.dumps(counts))


def test_what_ended_well_is_counted(tmp_path: Path) -> None:
    _fill(tmp_path, [], True)
    text, good = table(tmp_path)
    assert good
    states, kills = "25 distinct states of 11 points (9 child, 2 step)", "1 real kills (1 of 9 child, 0 of 2 step)"
    assert f"| stage killed: train | 26 | 0 | {states}; {kills}; at most 1 steps may be repeated, 1 were |" in text
    assert "stage killed: rank | 26 | 0 | 25 distinct states of 11 points (9 child, 2 step) (an earlier run); 1" in text
    assert "beside its work | 20 | 0 | real kills (20 train); at most 2 steps may be repeated, 2 were |" in text
    assert "| storage of a whole run | 50 | 0 | stages of tiny-0: 3.00 of 97 CPU s, 3.00 % |" in text
    assert "50 stage, 50 worker; 1 campaigns, 1 with the undisturbed root" in text
    assert "3 tests in 1 minutes: 0 failed, 1 skipped" in text


def test_a_failure_anywhere_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, ["another root"], False)
    text, good = table(tmp_path)
    assert not good
    assert "| stage killed: train | 26 | 1 |" in text and "1 campaigns, 0 with" in text


def test_storage_that_costs_more_than_it_may_is_a_failure(tmp_path: Path) -> None:
    _fill(tmp_path, [], True, percent=3.001)
    text, good = table(tmp_path)
    assert not good and "| storage of a whole run | 50 | 1 |" in text


def test_too_few_cases_fail(tmp_path: Path) -> None:
    _fill(tmp_path, [], True, few=1)
    text, good = table(tmp_path)
    assert not good and "| malformed configs | 9999 (want 10000) | 0 |" in text


def test_what_was_never_run_fails(tmp_path: Path) -> None:
    text, good = table(tmp_path)
    never = [name for name in GOALS if not name.startswith("campaign")]
    assert not good and text.count("| 0 | not run |") == len(never) and text.count("(want 100)") == 2
