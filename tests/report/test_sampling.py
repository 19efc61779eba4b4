import itertools
import json
import statistics

import pytest

from report.archive import Archive
from report.evidence import Evidence
from report.page import audit_data
from report.sampling import best_and_median, diversity_figures, order_statistic, probe_figures, rows, selections
from tests.report.conftest import Campaign

SCORES = [0.3, -1.0, 2.0, 0.7, 0.7, 5.0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_expected_best_and_median_are_those_of_all_subsets(n: int) -> None:
    subsets = list(itertools.combinations(SCORES, n))
    best, median = best_and_median(SCORES, n)
    assert best == pytest.approx(statistics.fmean(max(s) for s in subsets))
    assert median == pytest.approx(statistics.fmean(statistics.median(s) for s in subsets))
    assert order_statistic(SCORES, n, 1) == pytest.approx(statistics.fmean(min(s) for s in subsets))


def test_selection_shows_every_candidate_of_a_sample_of_prompts(finished: Campaign) -> None:
    (found,) = selections(Evidence(finished.view, Archive(finished.store)))
    assert len(found.prompts) == 24  # of 30
    card = found.prompts[0]
    assert len(card["candidates"]) == 4 and card["messages"][0]["content"].startswith("train ")
    ranks = [row[6] for row in card["candidates"]]
    assert ranks == [1, 2, 3, 4] and [row[7] for row in card["candidates"]] == ["selected", "", "", ""]
    assert set(found.gain) == {"helpfulness", "safety"} and list(found.gain["helpfulness"]) == [1, 2, 4]
    best, median = found.gain["helpfulness"][4]
    assert best > median and found.gain["helpfulness"][1][0] == pytest.approx(found.gain["helpfulness"][1][1])
    assert rows([found])[0][:4] == ["r1-select", "30", "120", "+1.00"]


def test_the_audit_keeps_to_its_room(finished: Campaign) -> None:
    found = selections(Evidence(finished.view, Archive(finished.store)))
    small = audit_data(found, room=5000)
    assert 1 <= len(small["rounds"][0]["prompts"]) < 24 and len(json.dumps(small)) < 6000
    assert small["rounds"][0]["total"] == 30


def test_the_chosen_temperature_is_marked(finished: Campaign) -> None:
    (found,) = probe_figures(Evidence(finished.view, Archive(finished.store)))
    assert found.svg.count(">chosen<") == 1 and "T = 1.2" in found.title
    assert [row[0] for row in found.rows] == ["0.8", "1", "1.2", "1.4"]


def test_diversity_is_one_line_a_round(finished: Campaign) -> None:
    (found,) = diversity_figures(Evidence(finished.view, Archive(finished.store)))
    assert found.head == ["temperature", "r1-probe"] and found.rows[0] == ["0.8", "0.700"]
