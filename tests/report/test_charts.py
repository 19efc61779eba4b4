import math
import re

import pytest

from report.charts import Axis, Point, Series, figure, plot, thin, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-0.3, 2.9, [0.0, 1.0, 2.0]),
        (1e-5, 5e-5, [1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_points_land_where_the_axes_say() -> None:
    svg = plot([Series("s", [Point(0, 0), Point(10, 5)])], Axis("x", room=0), Axis("y", room=0), title="t")
    # x: 52 .. 360 - 12; y: 220 - 38 .. 12, upside down
    assert 'points="52.0,182.0 348.0,12.0"' in svg


def test_texts_of_data_cannot_become_markup() -> None:
    bad = '"><script>x</script>'
    svg = plot(
        [Series(bad, [Point(0, 0, bad, tag=bad), Point(1, 1)])],
        Axis(bad, [(0, bad)]),
        Axis(bad),
        title=bad,
        limits=[(0.5, bad)],
    )
    assert "<script>" not in svg and svg.count("&lt;script&gt;") >= 6


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = plot(
        [Series("s", [Point(0, 1), Point(1, math.nan), Point(2, math.inf), Point(3, 2)])],
        Axis("x"),
        Axis("y"),
        title="t",
    )
    assert "nan" not in svg and "inf" not in svg and svg.count("<circle") == 2
    assert "No values" in plot([Series("s", [Point(0, math.nan)])], Axis("x"), Axis("y"), title="t")


def test_a_constant_curve_has_a_scale() -> None:
    assert "polyline" in plot([Series("s", [Point(0, 1e-4), Point(1, 1e-4)])], Axis("x"), Axis("y"), title="t")


def test_thinning_keeps_every_spike() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    points[1234], points[8765] = (1234.0, 9.0), (8765.0, -9.0)
    kept = thin(points)
    assert len(kept) <= 160 and (1234.0, 9.0) in kept and (8765.0, -9.0) in kept
    assert kept == sorted(kept)


def test_the_table_has_one_row_a_version_even_where_marks_are_nudged() -> None:
    axis = Axis("version", [(0, "v0"), (1, "v1")])
    found = figure(
        "f",
        [Series("a", [Point(-0.06, 1.0, low=0.5, high=1.5)]), Series("b", [Point(0.06, 2.0), Point(1.06, 3.0)])],
        axis,
        Axis("y"),
    )
    assert list(found.rows) == [["v0", "1.000 (0.500 to 1.500)", "2.000"], ["v1", "", "3.000"]]


def test_names_of_close_marks_do_not_cover_each_other() -> None:
    crowd = [Point(1.0 + 0.001 * i, 1.0, tag=f"v{i}") for i in range(9)]
    svg = plot([Series("s", [Point(0, 0, tag="far"), *crowd, Point(2, 2)])], Axis("x"), Axis("y"), title="t")
    places = [(float(x), float(y)) for x, y in re.findall(r'class="tag" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert 3 <= len(places) < 10 and ">far<" in svg
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) > 12 or abs(y - b) > 11 for a, b in places[:i])


def test_what_differs_by_rounding_alone_is_constant() -> None:
    svg = plot([Series("s", [Point(0, 1.0), Point(1, 1.0 + 1e-8)])], Axis("x"), Axis("y"), title="t")
    assert svg.count('<text class="y"') == len(set(re.findall(r'<text class="y"[^>]*>([^<]+)', svg)))
