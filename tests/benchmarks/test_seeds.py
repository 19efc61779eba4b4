"""benchmarks.seeds: tables of several seeds from what is in a store."""

import pytest

from benchmarks.seeds import (
    HEADS,
    accuracies,
    gains,
    markdown,
    mean_of,
    picks,
    results,
    rewards,
    rounds,
    spread,
    swapped,
    versions,
)
from configs.load import FOLDER
from engine.judges import judge
from storage import open_store


def _evaluated(version: str, helpful: float, wins: float | None) -> dict[str, object]:
    against = {} if wins is None else {"v0": {"gold": {"win_rate": {"mean": wins}}}}
    return {"version": version, "against": against, "gold_helpfulness": {"mean": helpful}, "gold_safety": {"mean": 1.0},
            "swapped": 0.1, "kl": None, "length": 12.5, "missing_eos": 0.0}  # fmt: skip


def test_numbers_come_from_the_evaluations_and_scores_from_the_comparison() -> None:
    found = {
        "v0-evaluate": _evaluated("v0", 0.25, None),
        "v1-evaluate": _evaluated("v1", 0.5, 0.6),
        "r1-safety": {
            "mix": {},
            "held_out": {"pairs": 9, "own": {"accuracy": 0.7, "low": 0.5, "high": 0.9, "pairs": 7}},
        },
        "compare": {"versions": [{"version": "v1", "helpfulness": {"mean": -2.0}}]},
    }
    table = versions(found)
    assert table["v0"] == [0.25, 0.1, 1.0, None, None, None, None, 12.5, 0.0]
    assert table["v1"] == [0.5, 0.1, 1.0, -2.0, None, 0.6, None, 12.5, 0.0]
    assert rewards(found) == {"r1-safety": {"all": 9, "accuracy": 0.7, "low": 0.5, "high": 0.9, "pairs": 7}}
    other = {"v0": [0.75, *table["v0"][1:]]}
    both = mean_of([table, other])
    assert (
        both["v0"][0] == (0.5, pytest.approx(12.7062 * 0.25)) and both["v1"][0] == (0.5, None) and both["v1"][4] is None
    )
    assert (
        markdown("x", both).splitlines()[2].startswith("| v0 | 0.500 +- 3.177 | 0.100 +- 0.000 | 1.000 +- 0.000 | - |")
    )
    assert markdown("x", table).splitlines()[2] == "| v0 | 0.250 | 0.100 | 1.000 | - | - | - | - | 12.5 | 0.000 |"
    assert all(len(row) == len(HEADS) for row in table.values())


def test_nothing_in_the_store_is_an_empty_table(tmp_path_factory: object) -> None:
    store = open_store(tmp_path_factory.mktemp("seeds") / "store")  # type: ignore[attr-defined]
    assert versions(results(str(FOLDER / "micro.yaml"), 3, store)) == {}


def test_an_interval_over_seeds_is_students() -> None:
    assert spread([]) is None and spread([0.5]) == (0.5, None)
    mean, half = spread([1.0, 2.0, 3.0, 4.0, 5.0]) or (0.0, None)
    assert mean == 3.0 and half == pytest.approx(1.963243, abs=1e-5)  # 2.776445 * sqrt(2.5 / 5)


def test_gains_are_paired_and_accuracies_seed_by_seed() -> None:
    difference = {"mean": 0.1, "low": 0.02, "high": 0.2}
    one = {"v0-evaluate": {"version": "v0", "against": {}},
           "v1-evaluate": {"version": "v1", "against": {"v0": {"gold": {"difference": difference}}}}}  # fmt: skip
    assert gains(one) == {"v1": difference}
    held = lambda value: {"r1-safety": {"mix": {}, "held_out": {"pairs": 9, "own": {"accuracy": value}}}}
    assert accuracies({1: held(0.6), 2: held(0.8), 3: {}})["r1-safety"][1:] == [0.6, 0.8, None]
    assert accuracies({1: held(0.6), 2: held(0.8)})["r1-safety"][0] == (pytest.approx(0.7), pytest.approx(1.27062))


def _ask(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"words: {words}"}]


def test_a_swapped_request_gives_nothing_to_those_who_read() -> None:
    gold = judge("stories")
    assert gold is not None
    rows = [
        {"messages": _ask("pig, hat, dog"), "text": "The pig."},
        {"messages": _ask("cat, cup, pig"), "text": "The cat."},
    ]
    assert swapped(rows, gold) == pytest.approx(1 / 6)  # "The pig." meets the second request too


def test_picks_are_of_the_newest_round() -> None:
    gold = judge("stories")
    assert gold is not None
    row = lambda prompt, source, role, text: {"prompt_id": prompt, "source": source, "role": role, "text": text}
    rows = [
        row("a", "round-9", "selected", "pig"),
        row("a", "round-10", "selected", "hat"),
        row("a", "round-10", "", "pig hat dog"),
        row("b", "round-10", "selected", "no"),
        row("b", "round-10", "", "cup"),
    ]
    found = picks(rows, {"a": _ask("pig, hat, dog"), "b": _ask("cat, cup, pig")}, gold)
    assert found == {"all": pytest.approx(5 / 12), "best": pytest.approx(2 / 3), "selected": pytest.approx(1 / 6)}
    table = rounds({1: {"r2-select": found, "r2-probe": {"temperature": 0.5}}, 2: {}})
    assert table["r2"][0] == (0.5, None) and table["r2"][2] == (pytest.approx(1 / 6), None)
