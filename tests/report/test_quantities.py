import math

import pytest

from report.quantities import duration, interval, number, percent, signed, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "0.12"), (-1.5, "\u22121.50"), (0.0, "0.00"), (-0.001, "\u22120.00"), (12, "12"), (12345.6, "12,346"),
     (123.456, "123.5"), (None, "\u2013"), (True, "\u2013"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers_are_short_and_honest(value: float | None, text: str) -> None:
    assert number(value) == text


def test_other_quantities() -> None:
    assert signed(0.5) == "+0.50" and signed(-0.5) == "\u22120.50" and signed(0.0) == "0.00"
    assert percent(0.256, 1) == "25.6%" and percent(None) == "\u2013"
    assert interval({"low": 0.1, "high": 0.2}) == "0.10 to 0.20" and interval(None) == ""
    assert [size(n) for n in (12, 1500, 250_000_000, None)] == ["12 B", "1.5 kB", "250 MB", "\u2013"]
    assert [duration(s) for s in (3.14, 75, 7200)] == ["3.1 s", "1 min 15 s", "2.0 h"]
