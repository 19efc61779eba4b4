"""What the tables of docs/trust.md say of a matrix, and that a campaign without one is told so in one line."""

from pathlib import Path

import pytest

from benchmarks.parting import best_of_n, ranges, read, versions, wins
from storage import open_store

PLUS = {"mean": 0.5, "low": 0.4, "high": 0.6}
TABLE = {
    "gaps": [
        {"version": "v0", "kl": 0.0, "proxy": None, "truth": PLUS},
        {"version": "v1", "kl": 1.234, "proxy": PLUS, "truth": PLUS},
    ],
    "parting": None,
    "judges": [{"name": "r1"}, {"name": "gold"}],
    "versions": ["v1"],
    "cells": {"v1": {"r1": {"wins": {"mean": 0.7}}, "gold": {"wins": {"mean": 0.6}}}},
    "best_of_n": [
        {"points": [{"n": 1, "kl": 0.0}, {"n": 2, "kl": 0.19, "proxy": PLUS, "truth": PLUS}], "fit": {"truth": None}}
    ],
}


def test_versions_that_have_a_gate_are_listed_with_its_reasons() -> None:
    said = {"v1": {"verdict": "warned", "reasons": [{"text": "shorter"}, {"text": "longer"}]}}
    *_, line, empty, end = versions(TABLE, said)
    assert line == "| v1 | 1.23 | +0.50 (+0.40 to +0.60) | +0.50 (+0.40 to +0.60) | warned: shorter; longer |"
    assert (empty, end) == ("", "They part nowhere.")


def test_every_curve_and_every_judge_has_its_column() -> None:
    assert best_of_n(TABLE)[0] == "| | n = 2 (KL 0.19) |"
    assert wins(TABLE)[2] == "| v1 | 70 % | 60 % |"


def test_a_requirement_is_shown_from_its_least_to_its_largest() -> None:
    papers = [
        {"checks": [{"name": "accuracy", "found": one}, {"name": "template", "found": "x"}]} for one in (0.6, 0.5)
    ]
    assert ranges(papers) == ["- accuracy: 0.5 to 0.6 (2 models)"]


def test_a_campaign_without_a_matrix_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^micro: its matrix is not in .*; run the campaign first$"):
        read("micro", None, open_store(str(tmp_path)))
