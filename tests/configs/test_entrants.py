"""The methods of a bake-off: every file is usable, the budget is the same for all, mistakes are told in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import ConfigError, competitors, describe, load, method_names
from configs.check import check
from configs.entrants import entrant_names, read_entrant
from configs.load import FOLDER, resolve

MICRO: dict[str, Any] = yaml.safe_load((FOLDER / "bake-off-micro.yaml").read_text())


def micro(**changes: Any) -> Any:
    raw = yaml.safe_load(yaml.safe_dump(MICRO))
    raw["bake_off"] |= changes
    return resolve(check(raw, "x"))


@pytest.mark.parametrize("name", entrant_names())
def test_every_file_is_an_entrant(name: str) -> None:
    entrant = read_entrant(name)
    assert entrant.method in method_names()
    if describe(entrant.method).loop == "online":
        assert entrant.k >= describe(entrant.method).least_k


def test_every_method_that_aligns_a_policy_competes() -> None:
    aligned = {n for n in method_names() if n != "pretrain" and not n.startswith("reward")}
    assert {read_entrant(name).method for name in entrant_names()} == aligned
    for name in ("bake-off", "bake-off-stories"):
        campaign = load(name, require_data=False)
        assert campaign.bake_off and set(campaign.bake_off.methods) <= set(entrant_names())
        assert {read_entrant(name).method for name in campaign.bake_off.methods} == aligned


def test_everybody_has_the_same_budget_and_the_familys_settings() -> None:
    campaign = load("bake-off")
    budget = campaign.sample.prompts * campaign.sample.k
    _, found = competitors(campaign, 5)
    for one in found:
        first = one.rounds[0]
        assert first.online and first.train and first.sample
        assert all(round_.train.seed == 5 for round_ in one.rounds)  # type: ignore[union-attr]
        if one.entrant.family == "online":
            assert first.online.iterations * first.online.batch_size * one.entrant.cost == budget
            assert first.online.k == one.entrant.k and first.online.method == one.entrant.method
        elif one.entrant.rows == "samples":
            assert sum(r.sample.prompts * r.sample.k for r in one.rounds if r.sample) == budget
            assert [r.sample.round for r in one.rounds if r.sample] == list(range(1, one.entrant.turns + 1))
            assert all(r.train.method == r.select.method == one.entrant.method for r in one.rounds)  # type: ignore[union-attr]
    rates = {(one.entrant.family, one.rounds[0].train.optimizer.learning_rate) for one in found if one.rounds[0].train
             and one.entrant.family != "online"}  # fmt: skip
    assert len(rates) == len({family for family, _ in rates})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"methods": ["sft", "dpoo"], "planted": None}, "no configs/methods/dpoo.yaml; did you mean dpo"),
        ({"methods": ["sft", "dpo"], "planted": None, "families": {"imitation": {}}}, "dpo is of family preference"),
        ({"methods": ["sft", "remax"], "planted": None, "families": {"imitation": {}, "online": {"batch_size": 48,
          "minibatch_size": 8}}}, "remax: the budget of 64 responses is no multiple of the 96"),
        ({"methods": ["sft", "sft"], "planted": None}, "must be different"),
        ({"planted": "rso"}, "planted rso is not among the methods"),
        ({"families": {"imitation": {"method": "sft"}}}, "belong to configs/methods"),
        ({"families": {"imitation": {"epochz": 1}}}, "unknown key"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        competitors(micro(**changes), 1)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_an_entrant_that_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("configs.entrants.METHODS", tmp_path)
    for name, text, wanted in [
        ("a", "{method: rloo, family: online, k: 1}", "a: rounds[0]: rloo compares the responses to one prompt"),
        ("b", "{method: dpo, family: online}", "method dpo is offline, family is online"),
        ("c", "{method: sft, family: imitation}", "want rows: demonstrations"),
        ("d", "{method: dpo, family: preference, config: {bata: 1.0}}", "method dpo has no setting 'bata'"),
        ("e", "{method: dpo, family: preference, famly: x}", "famly: unknown key"),
        ("f", "{method: steerlm, family: imitation, config: {attributes: helpfulness}}", "attributes must be tuple"),
    ]:
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            competitors(micro(methods=[name, "x"], planted=None), 1)
        assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_bake_off_has_no_rounds() -> None:
    with pytest.raises(ConfigError, match="bake_off and rounds in one config"):
        check({**MICRO, "rounds": [{"method": "rejection"}]}, "x")
    with pytest.raises(ConfigError, match="has no section bake_off"):
        competitors(load("micro"), 1)


@pytest.mark.parametrize(
    ("entry", "more", "wanted"),
    [
        ({"method": "rloo", "online": {"batch_size": 8, "minibatch_size": 4, "k": 1}}, {}, "rounds[0]: rloo compares"),
        ({"method": "dpo"}, {"sample": {"prompts": 4, "k": 1, "temperature": 1.0}}, "rounds[0]: dpo compares"),
        ({"method": "rrhf", "sample": {"prompts": 4, "k": 1}}, {}, "rounds[0]: rrhf compares"),
        ({"method": "dpo", "train": {"method": "sft"}}, {}, "rounds[0].train.method is sft, the round's is dpo"),
        ({"method": "dpo", "train": {"config": {"gamma": 1.0}}}, {}, "method dpo has no setting 'gamma'"),
    ],
)
def test_a_round_that_cannot_learn_is_refused(entry: dict[str, Any], more: dict[str, Any], wanted: str) -> None:
    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text()) | more | {"rounds": [entry]}
    with pytest.raises(ConfigError) as caught:
        check(raw, "x.yaml")
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_round_trains_by_its_own_method() -> None:
    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text()) | {"rounds": [{"method": "dpo"}, {"method": "rejection"}]}
    dpo, rejection = resolve(check(raw, "x")).rounds
    assert dpo.train and dpo.select and dpo.train.method == dpo.select.method == "dpo" and dpo.train.epochs == 1
    assert rejection.train and rejection.train.method == "rejection" and rejection.train.replay == 0.1
