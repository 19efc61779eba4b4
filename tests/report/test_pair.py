import copy
import dataclasses
import re
from pathlib import Path

from report import build_pair, write_pair
from report.pair import differences, merged
from tests.browser import CHROMIUM, Browser
from tests.report.conftest import Campaign


def test_two_campaigns_stand_side_by_side(finished: Campaign) -> None:
    first = finished.view
    other = copy.deepcopy(dict(first.config)) | {"seed": 6, "extra": ["<b>"]}
    page = build_pair(finished.store, first, dataclasses.replace(first, name="other", config=other))
    assert "toy and other" in page and page.count("is better than v0 by the gold judge") == 2
    assert re.search(r'<th scope="row">seed</th><td>5</td><td>6</td>', page)
    assert "&lt;b&gt;" in page and "<b>&#34;" not in page
    assert "Results that both use: prompts, base, v0" in page and "Gold over KL" in page


def test_differences_name_the_key_and_both_values() -> None:
    a = {"rounds": [{"method": "rejection"}, {"method": "ppo"}], "seed": 1, "only": 2}
    b = {"rounds": [{"method": "rejection"}, {"method": "dpo"}], "seed": 1}
    assert differences(a, b) == [("only", "2", "null"), ("rounds[1].method", '"ppo"', '"dpo"')]
    assert differences(a, a) == []


def test_a_setting_that_stages_take_over_is_named_once() -> None:
    lines = [
        ("annotate.seed", "17", "1"),
        ("rounds[0].annotate.seed", "17", "1"),
        ("seed", "17", "1"),
        ("sft.seed", "3", "1"),
    ]
    assert merged(lines) == [("seed and 2 more", "17", "1"), ("sft.seed", "3", "1")]


def test_a_campaign_that_has_only_begun_can_be_compared(finished: Campaign, partial: Campaign, tmp_path: Path) -> None:
    page = build_pair(finished.store, finished.view, dataclasses.replace(partial.view, digest="f" * 16))
    assert "toy-012345 and toy-ffffff" in page and 'class="absent"' in page
    if CHROMIUM is not None:
        with Browser(tmp_path / "profile") as browser:
            browser.open(write_pair(finished.store, finished.view, finished.view, tmp_path / "pair.html"))
            assert browser.errors == [] and browser.evaluate("document.querySelectorAll('.chart').length") == 4
