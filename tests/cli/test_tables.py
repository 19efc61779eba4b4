from typing import Any

import pytest

from cli.tables import print_versions

PAIR = {"win_rate": {"mean": 0.625, "low": 0.5, "high": 0.75}}


def entry(label: str, **known: float) -> dict[str, Any]:
    names = ("gold_helpfulness", "gold_safety", "gold", "helpfulness", "safety", "kl")
    means = {name: {"mean": known[name], "low": 0.0, "high": 0.0} if name in known else None for name in names}
    return {"version": label, "length": 9.25, "missing_eos": 0.125, **means}


def test_the_table_says_what_the_comparison_found(capsys: pytest.CaptureFixture[str]) -> None:
    table = {
        "versions": [
            entry("v0", gold=0.4, gold_helpfulness=0.41, kl=0.0),
            entry("v1", gold=0.5, gold_helpfulness=0.53, kl=3.21),
        ],
        "matrix": {"v0": {}, "v1": {"v0": {"gold": PAIR}}},
    }
    print_versions(table, {"v1": {"verdict": "rejected", "reasons": [{"rule": "worse"}, {"rule": "longer"}]}})
    head, v0, v1 = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["version", "gold", "helpful"] and "wins over v0 (gold)" in head
    assert "model" not in head  # no reward model has scored these
    assert v0.split() == ["v0", "0.41", "\u2013", "0.0", "9.2", "12.5%", "\u2013"]
    assert v1.split() == [
        "v1",
        "0.53",
        "62%",
        "(50%",
        "to",
        "75%)",
        "3.2",
        "9.2",
        "12.5%",
        "rejected:",
        "worse,",
        "longer",
    ]


def test_without_gold_the_reward_models_judge_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    table = {
        "versions": [entry("v0", helpfulness=-1.0), entry("v1", helpfulness=2.0)],
        "matrix": {"v0": {}, "v1": {"v0": {"score": PAIR}}},
    }
    print_versions(table)
    head, v0, v1 = capsys.readouterr().out.splitlines()
    assert "wins over v0 (reward models)" in head and "gate" not in head
    assert v0.split()[:2] == ["v0", "\u22121.00"] and "62%" in v1
