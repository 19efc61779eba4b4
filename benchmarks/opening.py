"""How large a report is and how soon it is open: headless Chromium loads the file and draws it.

    python -m benchmarks.opening store/reports/tiny-*.html

Seconds: until the page is loaded and drawn, median of five; in brackets what the page's own thread worked, which a busy
machine does not change. Exit status 1 beyond 3 MB or 1 s (of the page's own work).
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.browser import CHROMIUM, Browser

MOST_BYTES, MOST_SECONDS, TIMES = 3_000_000, 1.0, 5


def opened(browser: Browser, page: Path) -> tuple[float, float]:
    """Seconds until the page is drawn, and seconds of work of its own thread, which is counted anew for every page."""
    browser.call("Performance.enable", timeDomain="threadTicks")
    seconds = browser.open(page)
    found = {one["name"]: one["value"] for one in browser.call("Performance.getMetrics")["metrics"]}
    return seconds, float(found["TaskDuration"])


def main() -> int:
    """Print one line a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("pages", nargs="+", type=Path)
    pages = parser.parse_args().pages
    if CHROMIUM is None:
        print("no Chromium here: apt-get install chromium", file=sys.stderr)
        return 2
    late = False
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        for page in pages:
            found = [opened(browser, page.resolve()) for _ in range(TIMES)]
            seconds, worked = (statistics.median(values) for values in zip(*found))
            size = page.stat().st_size
            late |= size > MOST_BYTES or worked > MOST_SECONDS or bool(browser.errors)
            print(f"{page.name}: {size / 1e6:.2f} MB, open in {seconds:.2f} s ({worked:.2f} s of its own work)")
            print(*browser.errors, sep="\n", end="\n" if browser.errors else "")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
