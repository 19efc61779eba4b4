import pytest

from report import model_card
from report.archive import Archive
from report.evidence import Evidence
from tests.report.conftest import Campaign


def test_the_card_says_what_it_is_how_good_and_of_what(finished: Campaign) -> None:
    card = model_card(Evidence(finished.view, Archive(finished.store)), "v2")
    mean = sum(row["gold_safety"] for row in finished.rows["v2"]) / 40
    assert card.startswith("---\nlibrary_name: transformers\n") and "# toy v2" in card
    assert f"| gold safety | {mean:.2f} |" in card and "win rate over v0 by gold" in card
    assert "It was accepted by the campaign's gate." in card and "trained online" in card
    assert "the built-in world's prompts, 80 rows" in card and '"method": "ppo"' in card
    assert "`r1-select` (select)" in card and f"`{finished.ref('v2').key}`" in card
    for heading in ("Use", "Evaluation", "Training", "Data", "Limits", "Licence", "Lineage"):
        assert f"\n## {heading}\n" in card


def test_the_card_of_a_version_without_evaluation_does_not_invent_one(partial: Campaign) -> None:
    card = model_card(Evidence(partial.view, Archive(partial.store)), "v1")
    assert "has not been evaluated" in card and "Not made yet." in card


def test_an_unknown_version_is_refused_with_those_there_are(finished: Campaign) -> None:
    with pytest.raises(ValueError, match=r"v9.*base, v0, v1, v2"):
        model_card(Evidence(finished.view, Archive(finished.store)), "v9")
