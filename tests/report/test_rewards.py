import json
from pathlib import Path
from typing import Any

import pytest

from report.archive import Archive
from report.evidence import Evidence
from report.rewards import calibration_error, figures, judged, rows
from storage import Store
from tests.report.conftest import Campaign, add_round, add_start


def test_accuracy_is_shown_by_grade_with_its_interval(finished: Campaign) -> None:
    models = judged(Evidence(finished.view, Archive(finished.store)))
    assert [(model.label, model.round, model.kind) for model in models] == [
        ("r1-helpfulness", 1, "helpfulness"),
        ("r1-safety", 1, "safety"),
    ]
    accuracy, _, calibrated, _ = figures(models)
    found = models[0].found
    assert [name for name, _, _ in accuracy.legend] == [
        "negligibly better",
        "slightly better",
        "better",
        "significantly better",
        "all grades",
    ]
    (cells,) = accuracy.rows
    assert cells[0] == "r1" and cells[4] == f"{found['by_grade']['significantly better']['accuracy']:.3f}"
    assert cells[5] == f"{found['accuracy']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    assert calibrated.svg.count("<circle") == len(found["calibration"])
    assert rows(models)[0][1] == "80" and rows(models)[0][6].endswith("%")


def test_figure_6_counts_a_models_own_pairs_where_it_was_certified(store: Store) -> None:
    """A safety model cannot be blamed for how it orders pairs that were judged by helpfulness."""
    campaign = Campaign(store)
    add_start(campaign)
    add_round(campaign, "v1")
    share = {"accuracy": 0.9, "low": 0.8, "high": 1.0, "count": 40}
    bins = [{"predicted": 0.8, "right": 0.9, "pairs": 40}]

    def certificate(out: Path) -> dict[str, Any]:
        (out / "certificate.json").write_text(
            json.dumps({"own": share, "by_grade": {"better": share}, "calibration": {"bins": bins}})
        )
        return {}

    campaign.stage("r1-safety-certify", "certify", "certificate", ["r1-safety"], certificate)
    helpfulness, safety = judged(Evidence(campaign.view, Archive(store)))
    assert (helpfulness.certified, safety.certified) == (False, True) and safety.own == share
    assert safety.bins == bins and rows([safety])[0][4] == "0.100"
    drawn = figures([helpfulness, safety])[1]
    assert drawn.head == ["round", "better", "all grades"] and drawn.rows[0][1:] == ["0.900", "0.900 (0.800 to 1.000)"]
    assert "the held-out safety pairs" in drawn.caption


def test_calibration_error_weighs_bins_by_their_pairs() -> None:
    bins = [{"predicted": 0.6, "right": 0.5, "pairs": 30}, {"predicted": 0.9, "right": 1.0, "pairs": 10}]
    assert calibration_error(bins) == pytest.approx((30 * 0.1 + 10 * 0.1) / 40)
    assert calibration_error([]) is None
