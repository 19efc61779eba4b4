"""The page in a real browser. Skipped, and counted, where there is no Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.opening import MOST_BYTES, MOST_SECONDS, opened
from report import write
from storage import Store
from tests.browser import CHROMIUM, Browser
from tests.report.conftest import PROMPTS, Campaign, make_whole

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(finished: Campaign, tmp_path: Path) -> Path:
    return write(finished.store, finished.view, tmp_path / "report.html")


def test_opens_at_once_without_errors_or_requests(browser: Browser, page: Path) -> None:
    browser.call("Performance.enable", timeDomain="threadTicks")
    browser.open(page)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("file://")] == []
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    found = {one["name"]: one["value"] for one in browser.call("Performance.getMetrics")["metrics"]}
    assert found["TaskDuration"] < 0.7  # seconds of the page's own thread, however busy the machine is


def test_the_largest_page_keeps_its_promises(
    browser: Browser, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many held-out prompts as the page has room for: at most 3 MB, and open within a second of its own work."""
    monkeypatch.setattr("tests.report.conftest.PROMPTS", 2600)
    page = write(store, make_whole(store).view, tmp_path / "large.html")
    assert 1_200_000 < page.stat().st_size <= MOST_BYTES
    times = [opened(browser, page)[1] for _ in range(2)]
    assert browser.errors == [] and 0.0 < max(times) < MOST_SECONDS
    assert times[1] < 2 * times[0]  # counted anew for every page
    count = browser.evaluate("document.querySelector('#responses-filters .count').textContent")
    assert count == "2600 prompts"


def test_an_inline_handler_would_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 3\">')")
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    assert browser.evaluate("window.hacked") is None and browser.errors  # the policy refused it, and said so


def choose(browser: Browser, tag: str, value: str, event: str) -> None:
    """Set the first filter of a kind as a reader would."""
    field = f"document.querySelector('#responses-filters {tag}')"
    browser.evaluate(f"({field}.value = '{value}', {field}.dispatchEvent(new Event('{event}')))")


def test_search_and_category_narrow_the_responses(browser: Browser, page: Path) -> None:
    browser.open(page)
    count = "document.querySelector('#responses-filters .count').textContent"
    assert browser.evaluate(count) == f"{PROMPTS} prompts"
    choose(browser, "select", "rhyme", "change")
    assert browser.evaluate(count) == "13 prompts"  # 40 prompts, three categories in turn, rhyme second: 13
    choose(browser, "input", "ANSWER 22 OF", "input")
    assert browser.evaluate(count) == "1 prompt"
    assert browser.evaluate("document.querySelector('#responses-list mark').textContent") == "answer 22 of"
    browser.evaluate("document.querySelector('#responses-filters input[type=checkbox]').click()")
    labels = browser.evaluate("[...document.querySelectorAll('#responses-list h4')].map(h => h.textContent)")
    assert labels == ["v0", "v1", "v2"]


def test_hostile_texts_are_shown_as_texts(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.querySelector('#responses-list .text').textContent").startswith(
        "<script>window.hacked"
    )
    assert browser.evaluate("document.querySelector('#audit-list .long') !== null")
    assert "<img src=x" in browser.evaluate("document.querySelector('#audit-list').textContent")


def test_the_graph_answers_to_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('.node[data-node=v1]').focus()")
    browser.press("Enter", 13)
    assert browser.evaluate("document.querySelector('#lineage-detail h3').textContent") == "v1"
    chosen = browser.evaluate("[...document.querySelectorAll('.node.on')].map(n => n.dataset.node)")
    assert {"v1", "r1-select", "base"} <= set(chosen) and "v2" not in chosen
    browser.evaluate("document.querySelector('#lineage-detail .link').click()")
    assert browser.evaluate("document.querySelector('#lineage-detail h3').textContent") == "base"


def test_arrow_keys_read_a_chart(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('#rounds .chart').focus()")
    browser.press("ArrowRight", 39)
    first = browser.evaluate("document.querySelector('#tip').textContent")
    browser.press("End", 35)
    assert first.startswith("base: gold") and browser.evaluate("document.querySelector('#tip').textContent").startswith(
        "v2: gold"
    )


def test_arrow_keys_and_a_finger_read_a_coloured_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    table, tip = "document.querySelector('#categories .heat')", "document.querySelector('#tip')"
    browser.evaluate(f"{table}.focus()")
    for key, code in (("ArrowRight", 39), ("ArrowRight", 39), ("ArrowRight", 39)):
        browser.press(key, code)
    assert browser.evaluate(f"{tip}.textContent").startswith("animals, v1: ")
    browser.press("Escape", 27)
    assert browser.evaluate(f"{tip}.hidden") is True
    cell = f"{table}.tBodies[0].rows[2].cells[4]"
    browser.evaluate(f"{cell}.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true, pointerType: 'touch'}}))")
    assert browser.evaluate(f"{tip}.textContent").startswith("rhyme, v2: ")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_fits_a_phone_and_the_dark(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark
    browser.evaluate("document.querySelector('#theme').click()")
    assert (browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") is dark
    browser.evaluate("localStorage.clear()")


def test_a_running_campaign_opens_too(browser: Browser, partial: Campaign, tmp_path: Path) -> None:
    browser.open(write(partial.store, partial.view, tmp_path / "partial.html"))
    assert browser.errors == []
