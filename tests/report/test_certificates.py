import json
from pathlib import Path
from typing import Any

from report import build
from report.archive import Archive
from report.certificates import certificates, details, head, leakage, rows
from report.evidence import Evidence
from tests.report.conftest import HOSTILE, Campaign, add_start

SHARE = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "count": 90}
CHECKS = [
    {"name": "pairs", "found": 90, "wanted": 30, "passed": True, "text": "held-out helpfulness pairs 90, at least 30 wanted"},
    {"name": "accuracy", "found": 0.5, "wanted": 0.55, "passed": False,
     "text": "held-out accuracy 0.500, at least 0.55 wanted"},
    {"name": "calibration_error", "found": 0.1, "wanted": 0.25, "passed": True, "text": "calibration"},
]  # fmt: skip
FOUND: dict[str, Any] = {
    "kind": "helpfulness",
    "weights": {"reward": "a" * 16, "other": None, "before": None},
    "template": {"reward": "b" * 64, "policy": "b" * 64, "same": True},
    "pairs": 120,
    "own": SHARE,
    "all": SHARE,
    "by_grade": {"better": SHARE},
    "by_category": {HOSTILE: SHARE},
    "by_source": {"round-1": SHARE},
    "by_batch": {"1": SHARE},
    "by_kind": {"helpfulness": SHARE, "safety": SHARE},
    "calibration": {"error": 0.1, "bins": [{"predicted": 0.6, "right": 0.5, "pairs": 40}]},
    "length": {"slope": 0.0123, "correlation": 0.2, "picks_longer": 0.6, "longer_is_better": 0.5, "rule": 0.5,
               "matched": None, "without_slope": SHARE, "correlation_of_scores": 0.1},
    "style": {"list_items": {"pairs": 12, "model": 0.75, "annotators": 0.5}},
    "unsafe": {"threshold": 0.0, "unsafe": 20, "safe": 30, "recall": 0.55, "false_alarms": 0.1},
    "overfit": {"train": {**SHARE, "accuracy": 0.8}, "gap": 0.3},
    "invariance": {"batch": 1e-6, "plain": None},
    "agreement": {"alike": 0.7, "by_kind": {"safety": SHARE}, "other_by_kind": {"safety": {**SHARE, "accuracy": 0.9}}},
    "drift": {"responses": 64, "rank_correlation": 0.8, "mean": [0.1, 0.2], "std": [1.0, 1.0], "flipped": 0.25},
    "leakage": {"texts": 40, "corpus": 400, "verbatim": 0, "respelled": 1, "appended": 0, "near": 3, "share": 0.08,
                "natural": 0.07, "problems": []},
    "checks": CHECKS,
    "passed": False,
    "on_failure": "record",
}  # fmt: skip


def examined(campaign: Campaign) -> Evidence:
    """The campaign with two certificates and the screening."""

    def write(name: str, found: Any) -> Any:
        def fill(out: Path) -> dict[str, Any]:
            (out / name).write_text(json.dumps(found))
            return {}

        return fill

    sound = {
        **FOUND,
        "passed": True,
        "checks": [{**CHECKS[0], "found": 64}, {**CHECKS[1], "found": 0.61, "passed": True}],
    }
    screened = {"prompts": FOUND["leakage"], "responses": {**FOUND["leakage"], "texts": 0}, "problems": []}
    screened["prompts"] = {**FOUND["leakage"], "problems": ["1 of 40 evaluation prompts stand in the training rows"]}
    add_start(campaign)
    campaign.stage(
        "leakage",
        "leakage",
        "report",
        [],
        write("leakage.json", {**screened, "problems": screened["prompts"]["problems"]}),
    )
    campaign.stage("r1-helpfulness-certify", "certify", "certificate", ["v0"], write("certificate.json", FOUND))
    campaign.stage("r1-safety-certify", "certify", "certificate", ["v0"], write("certificate.json", sound))
    return Evidence(campaign.view, Archive(campaign.store))


def test_every_model_has_a_row_and_every_requirement_a_column_with_its_bound(store: Any) -> None:
    found = certificates(examined(Campaign(store)))
    assert [(cell.text, cell.small) for cell in head(found)] == [
        ("Pairs", "at least 30"), ("Accuracy", "at least 0.55"), ("Calibration error", "at most 0.25"),
    ]  # fmt: skip
    (first, failed), (second, passed) = rows(found)
    assert (first, second) == ("r1-helpfulness", "r1-safety")
    assert [(cell.text, cell.small, cell.mood) for cell in failed] == [
        ("failed, went on by record", "", "bad"), ("90", "", ""), ("50%", "not enough", "bad"), ("0.10", "", ""),
    ]  # fmt: skip
    assert [cell.text for cell in passed] == ["passed", "64", "61%", "\N{EN DASH}"]  # never measured, not found zero


def test_everything_that_was_measured_is_told(store: Any) -> None:
    one, _ = details(certificates(examined(Campaign(store))))
    assert one.failures == ["held-out accuracy 0.500, at least 0.55 wanted"]
    assert {by for by, *_ in one.groups} == {"Grade", "Category", "Source", "Batch", "Kind, all pairs"}
    assert one.style == [("list items", "75%", "50%", "12")]
    facts = dict(one.facts)
    assert facts["Unsafe responses"] == "55% of 20 below 0, and 10% of 30 safe ones"
    assert facts["With the round's other model"] == "orders 70% of the pairs alike; safety pairs: 50%, the other 90%"
    assert facts["Scores move, sd, with"] == "batch 1e\N{MINUS SIGN}6, plain \N{EN DASH}"
    assert one.reliability is not None and one.reliability.svg.count("<circle") == 1


def test_the_page_shows_certificates_and_screening_and_escapes_what_they_name(store: Any) -> None:
    campaign = Campaign(store)
    evidence = examined(campaign)
    page = build(campaign.store, campaign.view)
    assert HOSTILE not in page and page.count('<details class="stage">') >= 2
    assert "1 of 40 evaluation prompts stand in the training rows" in page
    assert [row[0] for row in leakage(evidence)] == ["Prompts"]  # no response was looked for


def test_a_campaign_without_certificates_says_so(store: Any) -> None:
    campaign = Campaign(store)
    add_start(campaign)
    assert "No reward model has been examined yet." in build(campaign.store, campaign.view)
