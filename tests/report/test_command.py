"""`python -m report`, called as a function: what it writes and how it refuses."""

import json
from pathlib import Path

import pytest

from report.__main__ import main
from tests.report.conftest import Campaign


def plain(campaign: Campaign) -> str:
    view = campaign.view
    return json.dumps(
        {
            "name": view.name,
            "digest": view.digest,
            "config": dict(view.config),
            "nodes": campaign.nodes,
            "versions": campaign.versions,
            "compare": view.compare and view.compare.key,
        }
    )


def test_writes_the_page_and_a_card_for_every_version_made(finished: Campaign, tmp_path: Path) -> None:
    (tmp_path / "view.json").write_text(plain(finished))
    arguments = [str(tmp_path / "view.json"), str(tmp_path / "page.html"), "--store", finished.store.url]
    assert main([*arguments, "--cards"]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    cards = finished.store.list("reports")
    assert cards == [f"reports/toy-0123456789abcdef/{label}.md" for label in ("base", "v0", "v1", "v2")]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "view.json").write_text("{}")
    for campaign in (str(tmp_path / "view.json"), str(tmp_path / "none.json"), "toy-0000"):
        assert main([campaign, str(tmp_path / "page.html"), "--store", str(tmp_path / "store")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
