from report.charts import Axis
from report.ridges import histogram, ridges


def test_histogram_counts_everything_once() -> None:
    assert histogram([0.0, 0.1, 0.9, 1.0, 5.0, -5.0], 0.0, 1.0, 2) == [0.5, 0.5]


def test_one_ridge_a_group_with_its_mean() -> None:
    svg = ridges("r", [("v0", [0.0, 1.0]), ("v1", [1.0, 2.0])], Axis("score"), ["step-0", "step-8"])
    assert svg.count('class="hill"') == 2 and "v0: mean 0.50 over 2 responses" in svg and "v1: mean 1.50" in svg
