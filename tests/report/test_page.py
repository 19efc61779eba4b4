import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report import build
from report.archive import Archive
from report.evidence import Evidence
from report.page import island
from report.versions import gates, headline
from tests.report.conftest import HOSTILE, Campaign


def test_the_finished_page_answers_the_question_with_the_numbers_of_the_store(finished: Campaign) -> None:
    page = build(finished.store, finished.view)
    gold = [row["gold_helpfulness"] for row in finished.rows["v2"]]
    change = [b["gold"] - a["gold"] for a, b in zip(finished.rows["v0"], finished.rows["v2"])]
    assert f"v2 is better than v0 by the gold judge: +{sum(change) / len(change):.2f}" in page
    assert f"<dd>{sum(gold) / len(gold):.2f}</dd>" in page
    assert 'class="absent">not' not in page and "20 of 20 stages done" in page
    for label in ("base", "v0", "v1", "v2"):
        assert f'<th scope="row">{label}</th>' in page
    for title in ("figure 6", "figure 7", "figure 8", "figure 11", "Reward shift", "Proxy against gold"):
        assert title in page
    assert "not finished" not in page and len(page) < 3_000_000


class Tags(HTMLParser):
    """Every tag with its attributes, as a browser without scripts would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_fetches_nothing_and_runs_only_its_own_script(finished: Campaign) -> None:
    page = build(finished.store, finished.view)
    tags = Tags(page).found
    for tag, attributes in tags:
        assert tag not in {"img", "link", "iframe", "object", "base", "form"}, tag
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "action", "srcset")], (
            attributes
        )
        assert (attributes.get("href") or "#").startswith("#"), attributes
    assert [attributes.get("type") for tag, attributes in tags if tag == "script"] == ["application/json"] * 3 + [None]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert style is not None and script is not None
    assert "url(" not in style[1] and "@import" not in style[1]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv"))
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_no_text_of_a_campaign_becomes_markup(finished: Campaign) -> None:
    page = build(finished.store, finished.view)
    assert HOSTILE not in page and "<script>window" not in page and "<img" not in page
    assert "&lt;script&gt;window.hacked" in page  # the smoke prompts are there, as text
    assert page.count("<script") == 4  # three islands and the page's own


def test_an_island_survives_any_text() -> None:
    data = {"a": "</script><!--&\u2028" + HOSTILE}
    text = island(data)
    assert "<" not in text and ">" not in text and "&" not in text and "\u2028" not in text
    assert json.loads(text) == data


def test_a_running_campaign_is_shown_as_far_as_it_is(partial: Campaign) -> None:
    page = build(partial.store, partial.view)
    assert "This campaign is not finished" in page and "No version after v0 has been evaluated yet" in page
    assert re.search(r'<th scope="row">v1</th>\s*<td colspan="\d+" class="absent">not made yet', page)
    assert "Helpfulness model</th>" not in page  # reward scores of different rounds are not put side by side
    assert "No selection has been made yet" in page and "figure 8" in page and "figure 20" in page


def test_a_campaign_that_has_only_begun_has_a_page(store: object) -> None:
    campaign = Campaign(store)  # type: ignore[arg-type]
    campaign.stage("prompts", "ingest", "rows", [], None)
    page = build(campaign.store, campaign.view)
    assert "0 of 1 stages done" in page and page.count('class="absent"') >= 8


def test_a_damaged_result_is_named_and_left_out(finished: Campaign) -> None:
    folder = Path(finished.store.url.removeprefix("file://")) / "artifacts" / finished.ref("compare").key
    (table,) = folder.glob("*/table.json")
    text = table.read_text()
    table.write_text(text.replace('"gold"', '"gelb"'))  # same size
    page = build(finished.store, finished.view)
    assert "table.json was altered after it was made" in page
    assert "Reward-model columns appear when" in page and "v2 is better than v0" in page  # the evaluations still speak


def test_the_page_tells_what_the_gate_decided_and_why(finished: Campaign) -> None:
    page = build(finished.store, finished.view)
    assert "What the gate decided" in page and "no rule held" in page
    evidence = Evidence(finished.view, Archive(finished.store))
    assert [row[:3] for row in gates(evidence)] == [("v1", "accepted", "v0 by gold"), ("v2", "accepted", "v1 by gold")]
    reason = {"rule": "worse", "action": "reject", "found": 0, "limit": 0, "text": "worse <by> far"}
    evidence.verdicts = {"v1": {"verdict": "rejected", "best": "v0", "by": "gold", "reasons": [reason]}}
    assert gates(evidence) == [("v1", "rejected", "v0 by gold", [("reject", "worse <by> far")])]


@pytest.mark.parametrize(("accepted", "final"), [((True, True), "v2"), ((True, False), "v1"), ((False, False), "v2")])
def test_the_headline_is_the_newest_accepted_version(
    finished: Campaign, accepted: tuple[bool, bool], final: str
) -> None:
    evidence = Evidence(finished.view, Archive(finished.store))
    evidence.verdicts = {label: {"accepted": word} for label, word in zip(("v1", "v2"), accepted)}
    assert evidence.final == final and headline(evidence).sentence.startswith(f"{final} is better than v0")


def test_the_headline_names_the_versions_that_the_gate_rejected_after_it(finished: Campaign) -> None:
    evidence = Evidence(finished.view, Archive(finished.store))
    reasons = [{"action": "warn", "text": "parted"}, {"action": "reject", "text": "worse than v1 by gold"}]
    evidence.verdicts = {"v1": {"accepted": True, "verdict": "accepted", "reasons": []},
                         "v2": {"accepted": False, "verdict": "rejected", "reasons": reasons}}  # fmt: skip
    sentence = headline(evidence).sentence
    assert (
        " The gate rejected v2: worse than v1 by gold. Proxy and truth part between v1 (KL 2.0) and v2 (KL 9.0): "
        in sentence
    )


def test_a_better_version_that_lost_a_kind_says_so(finished: Campaign) -> None:
    evidence = Evidence(finished.view, Archive(finished.store))
    entries = {label: dict(entry) for label, entry in evidence.standing.entries.items()}
    entries["v2"]["gold_helpfulness"] = {"mean": 0.21, "low": 0.2, "high": 0.22}
    evidence.standing = dataclasses.replace(evidence.standing, entries=entries)
    found = headline(evidence)
    before = entries["v0"]["gold_helpfulness"]["mean"]
    assert found.sentence.endswith(f"Its gold helpfulness fell from {before:.2f} to 0.21.")
    assert [mood for *_, mood in found.facts] == ["bad", "good", "good", ""]
