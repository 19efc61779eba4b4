"""report.matrix: what the matrix found, drawn."""

import copy
from typing import Any

import pytest

from report import build
from report.archive import Archive
from report.evidence import Evidence
from report.matrix import best_of_n, heats, parting_text, proxy_over_kl, table
from tests.report.conftest import Campaign


@pytest.fixture
def found(finished: Campaign) -> dict[str, Any]:
    read = table(Evidence(finished.view, Archive(finished.store)))
    assert read is not None
    return copy.deepcopy(dict(read))


def test_the_models_that_steered_a_version_are_marked(found: dict[str, Any]) -> None:
    wins, change = heats(found)
    assert wins.head == ["r1", "gold"] and [label for label, _ in wins.rows] == ["base", "v0", "v1", "v2"]
    cells = {label: [cell.text for cell in row] for label, row in wins.rows}
    assert cells["v2"] == ["72%*", "45%"] and cells["v0"] == ["50%", "50%"]
    shades = dict(change.rows)["v2"]
    assert shades[0].shade == pytest.approx(0.9) and shades[1].shade == pytest.approx(-0.2)
    assert "these reward models steered it" in shades[0].tip and "steered" not in shades[1].tip


def test_where_proxy_and_truth_part_is_one_sentence(found: dict[str, Any]) -> None:
    text = parting_text(found)
    assert text == (
        "Proxy and truth part between v1 (KL 2.0) and v2 (KL 9.0): the reward models say +0.50 sd (+0.40 to +0.60), "
        "gold \N{MINUS SIGN}0.50 sd (\N{MINUS SIGN}0.60 to \N{MINUS SIGN}0.40)."
    )
    drawn = proxy_over_kl(found)
    assert drawn is not None and text in drawn.caption and "v2" in str(drawn.svg)
    assert parting_text({**found, "parting": None}) == "By gold, proxy and truth have not parted."
    assert parting_text({**found, "truth": None}).startswith("Nobody but the reward models has judged")
    for gap in found["gaps"]:
        gap["truth"] = None
    assert proxy_over_kl({**found, "truth": None}) is None


def test_best_of_n_is_drawn_by_gold_and_by_the_proxy(found: dict[str, Any]) -> None:
    gold, proxy = best_of_n(found)
    assert "round-1 \N{EN DASH}" in gold.caption and "a 1.00, b 0.25, peak at 4.0 nats" in proxy.caption
    assert best_of_n({**found, "best_of_n": []}) == []


def test_the_page_shows_the_matrix_and_a_campaign_without_one_says_nothing(
    finished: Campaign, partial: Campaign
) -> None:
    page = build(finished.store, finished.view)
    assert "Versions under every judge" in page and "Proxy and truth part between v1" in page
    assert "Versions under every judge" not in build(partial.store, partial.view)
