"""The reward models on preferences held out from them: agreement by grade (the paper's figure 6), calibration, bias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report.charts import Axis, Figure, Point, Series, figure, look
from report.evidence import Evidence
from report.quantities import interval, number, percent

GRADES = ("negligibly better", "slightly better", "better", "significantly better")
HEAD = (
    "Model",
    "Pairs held out",
    "Accuracy",
    "On its own kind",
    "Calibration error",
    "Length correlation",
    "Unsafe recall",
)


@dataclass(frozen=True)
class Judged:
    """One reward model: label of its stage, round, kind, what its held_out.json says, and its accuracy by grade.

    by_grade, own and bins (of its calibration) are over the pairs of its own kind where it was certified, else over all of
    its held-out pairs.
    """

    label: str
    round: int
    kind: str
    found: Mapping[str, Any]
    own: Mapping[str, Any]
    by_grade: Mapping[str, Any]
    bins: Sequence[Mapping[str, float]]
    certified: bool


def judged(evidence: Evidence) -> list[Judged]:
    """The reward models with held-out numbers, in the order of the rounds."""
    models = []
    for place, node in enumerate(evidence.view.doing("reward")):
        found = evidence.archive.json(node.ref, "held_out.json")
        manifest = evidence.archive.manifest(node.ref)
        if not found or not found.get("pairs") or manifest is None:
            continue
        turn = re.match(r"r(\d+)-", node.label)
        kind = manifest.record.get("identity", {}).get("recipe", {}).get("kind") or node.label.rpartition("-")[2]
        examined = evidence.view.node(f"{node.label}-certify")
        certificate = evidence.archive.json(examined.ref, "certificate.json") if examined else None
        known = certificate if certificate and "by_grade" in certificate else None
        if known:
            read = known["own"], known["by_grade"], known.get("calibration", {}).get("bins", [])
        else:
            read = found, found.get("by_grade", {}), found.get("calibration", [])
        models.append(
            Judged(node.label, int(turn[1]) if turn else place + 1, str(kind), found, *read, known is not None)
        )
    return sorted(models, key=lambda model: (model.round, model.label))


def figures(models: Sequence[Judged]) -> list[Figure]:
    """For each kind of model: accuracy over the rounds by grade, and the calibration of the last one."""
    models = [model for model in models if not model.label.startswith("judge-")]  # those belong to no round
    kinds = sorted({model.kind for model in models})
    by_kind = [[model for model in models if model.kind == kind] for kind in kinds]
    return [_accuracy(some) for some in by_kind] + [_calibration(some[-1]) for some in by_kind]


def _accuracy(models: Sequence[Judged]) -> Figure:
    kind = models[0].kind
    grades = [grade for grade in GRADES if any(grade in model.by_grade for model in models)]
    series = [
        Series(grade, _points(models, lambda model, g=grade: model.by_grade.get(g), grade), look(i + 1, 5))
        for i, grade in enumerate(grades)
    ]
    series.append(Series("all grades", _points(models, lambda model: model.own, "all grades"), "ink", dashed=True))
    rounds = sorted({model.round for model in models})
    x = Axis("round", [(r, f"r{r}") for r in rounds], low=rounds[0] - 0.4, high=rounds[-1] + 0.4)
    whose = f"{kind} pairs" if all(model.certified for model in models) else "pairs, of both kinds,"
    caption = (
        f"Share of the held-out {whose} that each round's {kind} model orders as the annotators did, by how much better "
        "the preferred response was; a tie counts as wrong. Held-out pairs grow with the rounds."
    )
    title = f"Accuracy of the {kind} model (figure 6)"
    return figure(title, series, x, Axis("accuracy"), caption=caption, limits=[(0.5, "chance")])


def _points(models: Sequence[Judged], pick: Any, name: str) -> list[Point]:
    points = []
    for model in models:
        share = pick(model)
        if share and share.get("accuracy") is not None:
            text = f"{percent(share['accuracy'], 1)} ({interval(share, percent)}) of {share['count']} pairs"
            low, high = (share["low"], share["high"]) if name == "all grades" else (None, None)
            points.append(Point(model.round, share["accuracy"], f"{model.label}, {name}: {text}", low, high))
    return points


def _calibration(model: Judged) -> Figure:
    points = [
        Point(
            one["predicted"],
            one["right"],
            f"predicted {percent(one['predicted'])}, found {percent(one['right'])} of {one['pairs']} pairs",
        )
        for one in model.bins
    ]
    even = Series("perfectly calibrated", [Point(0.5, 0.5), Point(1.0, 1.0)], "muted", marks=False, dashed=True)
    caption = (
        f"{model.label}: the probability that it gives to the response it prefers, against how often the annotators prefer it "
        "too. Below the line it is too sure of itself. Held-out pairs"
        f"{' of its own kind' if model.certified else ''}."
    )
    x, y = Axis("predicted probability", low=0.48, high=1.02), Axis("found")
    return figure(f"Calibration of the {model.kind} model", [Series(model.label, points), even], x, y, caption=caption)


def rows(models: Sequence[Judged]) -> list[list[str]]:
    """One row a model: what was measured on the held-out pairs."""
    return [
        [
            model.label,
            number(model.found["pairs"]),
            _share(model.found),
            _share(model.found.get("own")),
            number(calibration_error(model.bins), 3),
            number(model.found.get("length_correlation"), 2),
            percent(model.found.get("unsafe_recall")),
        ]
        for model in models
    ]


def calibration_error(bins: Sequence[Mapping[str, float]]) -> float | None:
    """Expected calibration error: mean distance of predicted from found, weighted by the pairs of each bin."""
    pairs = sum(one["pairs"] for one in bins)
    return sum(one["pairs"] * abs(one["predicted"] - one["right"]) for one in bins) / pairs if pairs else None


def _share(found: Mapping[str, Any] | None) -> str:
    if not found or found.get("accuracy") is None:
        return ""
    return f"{percent(found['accuracy'], 1)} ({interval(found, percent)})"
