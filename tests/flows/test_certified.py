"""Certificates stop a campaign or are recorded, and never name what comes after them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import ConfigError
from configs.check import check
from configs.load import FOLDER, resolve
from flows.rounds import align
from storage import open_store
from tasks import Run
from tasks.certify import Uncertified


def _run(raw: dict[str, Any], store: Path, mode: Any, until: str | None = None) -> Run:
    campaign = resolve(check(raw, "test"))
    return Run(campaign, open_store(store), campaign.runtime, mode=mode, until=until)


@pytest.fixture
def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    return loaded


def test_certificates_name_nothing_but_themselves(tmp_path: Path, raw: dict[str, Any]) -> None:
    names = []
    for certify in ({"on_failure": "record"}, {"on_failure": "stop", "require": {"accuracy": 0.9, "pairs": 7}}):
        run = _run({**raw, "certify": certify}, tmp_path / "store", "plan")
        align(run)
        names.append({label: artifact.ref.key for label, artifact in run.artifacts.items()})
    changed = {label for label in names[0] if names[0][label] != names[1][label]}
    assert changed == {"r1-helpfulness-certify", "r1-safety-certify"}


def test_every_refreshed_model_is_certified_and_compared_with_the_one_it_replaces(
    tmp_path: Path, raw: dict[str, Any]
) -> None:
    raw["rounds"] = [{"method": "rejection"}, {"method": "rejection"}, {"method": "ppo", "reward": "keep"}]
    run = _run(raw, tmp_path / "store", "plan")
    align(run)
    inputs = {
        label: artifact.stage.input_keys() for label, artifact in run.artifacts.items() if label.endswith("-certify")
    }
    assert list(inputs) == [f"r{i}-{kind}-certify" for i in (1, 2) for kind in ("helpfulness", "safety")]
    keys = {label: artifact.ref.key for label, artifact in run.artifacts.items()}
    assert inputs["r2-safety-certify"]["before"] == keys["r1-safety"] and "before" not in inputs["r1-safety-certify"]
    assert inputs["r2-safety-certify"]["other"] == keys["r2-helpfulness"]
    assert inputs["r2-safety-certify"]["policy"] == keys["v1"]


def test_a_model_that_learned_from_rankings_is_certified_on_them(tmp_path: Path, raw: dict[str, Any]) -> None:
    ranked = tmp_path / "ranked.jsonl"
    ranked.write_text("")
    raw["data"]["rankings"] = [{"path": str(ranked), "format": "ranking"}]
    raw["rewards"] = {**raw["rewards"], "helpfulness": {"kind": "helpfulness", "method": "reward-ranking"}}
    run = _run(raw, tmp_path / "store", "plan")
    align(run)
    read = {
        label: [up.label for up in run.artifacts[f"r1-{label}-certify"].upstream] for label in ("helpfulness", "safety")
    }
    assert "rankings" in read["helpfulness"] and "r1-annotate" not in read["helpfulness"]
    assert "r1-annotate" in read["safety"] and "rankings" not in read["safety"]


@pytest.mark.parametrize(
    ("certify", "wanted"),
    [
        ({"reward": {"kind": "safety"}}, "certify.reward: not here; the campaign sets it"),
        ({"require": {"acuracy": 0.6}}, "did you mean 'accuracy'"),
        ({"require": {"accuracy": 1.5}}, "certify.require.accuracy"),
        ({"on_failure": "ignore"}, "certify.on_failure"),
        ({"leakage": {"near": 0.5}}, "certify.leakage: not here; the campaign sets it"),
    ],
)
def test_bad_settings_are_one_line(raw: dict[str, Any], certify: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted) as caught:
        check({**raw, "certify": certify}, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["record", {"on_leak": "record"}])
def test_leakage_names_only_the_screening_and_the_certificates(tmp_path: Path, raw: dict[str, Any], given: Any) -> None:
    names = []
    for more in ({}, {"leakage": given}):
        run = _run({**raw, **more}, tmp_path / "store", "plan")
        align(run)
        names.append({label: artifact.ref.key for label, artifact in run.artifacts.items()})
    changed = {label for label in names[0] if names[0][label] != names[1][label]}
    assert changed == {"leakage", "r1-helpfulness-certify", "r1-safety-certify"}


@pytest.mark.slow
@pytest.mark.slow_short
def test_a_failed_certificate_stops_the_round_unless_the_config_says_go_on(tmp_path: Path, raw: dict[str, Any]) -> None:
    strict = {**raw, "certify": {"require": {"pairs": 10_000}}}
    run = _run(strict, tmp_path / "store", "direct")
    with pytest.raises(
        Uncertified, match=r"r1-helpfulness may not steer a round: held-out helpfulness pairs \d+, at least 10000"
    ) as e:
        align(run)
    assert "\n" not in str(e.value) and "set certify.on_failure: record to go on" in str(e.value)
    assert not [label for label in run.artifacts if label.startswith(("r1-probe", "r1-sample", "v1"))]
    assert run.artifacts["r1-helpfulness-certify"].made() is not None  # a failed certificate is a result, to be read
    again = _run(strict, tmp_path / "store", "plan")
    align(again)  # a plan lays out the rest all the same
    assert again.artifacts["r1-helpfulness"].made() is not None and again.artifacts["compare"].made() is None

    heard: list[str] = []
    strict["certify"]["on_failure"] = "record"
    run = _run(strict, tmp_path / "store", "direct", until="r1-rewards")
    run.listen = lambda label, event: heard.append(f"{label}: {event.get('text')}")
    with pytest.raises(Exception, match="r1-rewards"):
        align(run)
    summary = run.artifacts["r1-safety-certify"].summary()
    assert summary is not None and not summary["passed"] and summary["on_failure"] == "record"
    assert any("r1-safety may not steer a round" in line and "goes on" in line for line in heard)
