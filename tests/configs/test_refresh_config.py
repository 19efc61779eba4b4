"""configs.refresh: a refresh's file, every error one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import ConfigError, load
from configs.load import FOLDER
from configs.refresh import load_refresh


@pytest.fixture
def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "refresh.yaml").read_text())
    return loaded


def test_the_shipped_refresh_fills_in_what_its_sections_share() -> None:
    refresh, campaign = load_refresh("refresh")
    assert (refresh.name, campaign.name, refresh.seed) == ("refresh", "tiny", 17)
    assert refresh.gather.held_out == campaign.data.held_out and refresh.short_sft.limits == campaign.limits
    assert {refresh.gather.seed, refresh.pack.seed, refresh.measure.seed, refresh.decide.seed} == {17}
    other, theirs = load_refresh("refresh", seed=3)
    assert {other.seed, other.gather.seed, theirs.seed, theirs.sft.seed} == {3}


def test_a_refresh_is_no_campaign_and_the_other_way_round() -> None:
    with pytest.raises(
        ConfigError, match="refresh: a refresh, not a campaign; run it with continued-pretraining/refresh"
    ):
        load("refresh")
    with pytest.raises(ConfigError, match="micro: campaign is missing"):
        load_refresh("micro")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"inboxes": []}, "inboxes: Tuple should have at least 1 item"),
        ({"inboxes": [{}]}, "inboxes.0: an inbox needs exactly one of url, world"),
        ({"campaign": "tniy"}, "no config 'tniy'; did you mean tiny"),
        ({"trainig": {}}, "trainig: unknown key; did you mean 'training'?"),
        ({"training": {"replays": 0.5}}, "training.replays: unknown key; did you mean 'replay'?"),
        ({"training": {"replay": 1.0}}, "training.replay: Input should be less than 1"),
        ({"gather": {"held_out": 0.5}}, "gather.held_out: not here; the refresh sets it itself"),
        ({"decide": {"candidates": ["a"]}}, "decide.candidates: not here"),
        ({"decide": {"thresholds": {"score": {"short": 0.5, "rounds": 0.1}}}}, "rounds 0.1 is less than short 0.5"),
        ({"short_sft": {"method": "dpo"}}, "short_sft.method dpo does not train on demonstrations; use sft"),
        ({"short_sft": {"config": {"beta": 1}}}, "short_sft: method sft has no setting 'beta'"),
        ({"least": 0}, "least: Input should be greater than or equal to 1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"old": [{"path": "no/such/folder"}]}, "no/such/folder: no such file or folder"),
    ],
)
def test_what_is_wrong_is_one_line(raw: dict[str, Any], change: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw | change))
    with pytest.raises(ConfigError) as told:
        load_refresh(str(path))
    assert wanted in str(told.value) and "\n" not in str(told.value)


def test_an_adopted_base_needs_its_old_text_to_replay(raw: dict[str, Any], tmp_path: Path) -> None:
    campaign = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    campaign["base"] = {"adopt": {"hub": "some/model", "revision": "0" * 40}}
    del campaign["data"]["documents"]
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw | {"campaign": str(tmp_path / "campaign.yaml")}))
    with pytest.raises(ConfigError, match=r"campaign micro has no documents of its own to replay; give old"):
        load_refresh(str(path))
    path.write_text(
        yaml.safe_dump(raw | {"campaign": str(tmp_path / "campaign.yaml"), "old": [{"world": "documents"}]})
    )
    assert load_refresh(str(path))[0].old
