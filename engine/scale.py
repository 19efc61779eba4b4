"""Scores of two reward models in one unit, for methods that compare responses of different prompts."""

from collections.abc import Iterable, Mapping
from typing import Any

from methods.candidates import moments


def by_safety(row: Mapping[str, Any]) -> bool:
    """Whether the rule took the safety model's score for this row, which has its branch already."""
    return row["safety"] is not None and (row["is_safety"] or row["branch"] == 0)


class Scale:
    """One unit for the scores of both reward models: standard deviations of all the responses that the same model judged.

    Raw scores of two models have no common origin or spread, so that whoever compares responses of different prompts would
    mostly tell safety prompts from the others.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """rows: the whole pool, with branch and score of the piecewise rule."""
        scores: dict[bool, list[float]] = {}
        for row in rows:
            scores.setdefault(by_safety(row), []).append(row["score"])
        self._moments = {model: moments(values) for model, values in scores.items()}

    def __call__(self, row: Mapping[str, Any]) -> float:
        """The row's score in that unit."""
        mean, deviation = self._moments[by_safety(row)]
        return (row["score"] - mean) / deviation
