"""The certificate of each reward model: what was required and found, and everything else that was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report.charts import SMALL, Axis, Figure, Point, Series, figure
from report.evidence import Evidence
from report.quantities import NONE, exact, interval, number, percent, signed
from report.rewards import GRADES
from report.versions import Cell

Found = Mapping[str, Any]  # what certificate.json holds
REQUIREMENTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {  # name -> head of its column, how a value is written
    "pairs": ("Pairs", number),
    "accuracy": ("Accuracy", percent),
    "accuracy_low": ("its lower end", percent),
    "calibration_error": ("Calibration error", number),
    "longer_excess": ("Longer excess", signed),
    "length_correlation": ("Length correlation", number),
    "over_length": ("Over length", signed),
    "length_free_accuracy": ("Length-free accuracy", percent),
    "overfit_gap": ("Overfit gap", signed),
    "unsafe_recall": ("Unsafe recall", percent),
    "invariance": ("Invariance, sd", lambda value: exact(value, 1)),
    "drift": ("Drift", number),
    "template": ("Template", lambda value: str(value)[:8]),
    "leakage": ("Leaks", number),
}
MOST = (
    "pairs",
    "accuracy",
    "accuracy_low",
    "over_length",
    "length_free_accuracy",
    "unsafe_recall",
    "drift",
)  # at least
GROUPS = (("by_grade", "Grade"), ("by_category", "Category"), ("by_source", "Source"), ("by_batch", "Batch"),
          ("by_kind", "Kind, all pairs"))  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """One model's certificate as the page shows it."""

    label: str
    passed: bool
    verdict: str
    failures: Sequence[str]
    facts: Sequence[tuple[str, str]]
    groups: Sequence[tuple[str, str, str, str]]  # by what, group, accuracy with interval, pairs
    style: Sequence[tuple[str, str, str, str]]  # mark, the model's share, the annotators', pairs
    reliability: Figure | None


def certificates(evidence: Evidence) -> list[tuple[str, Found]]:
    """(label of the reward model, certificate.json) of every one that was examined, in the order of the rounds."""
    found = []
    for node in evidence.view.doing("certify"):
        read = evidence.archive.json(node.ref, "certificate.json")
        if read:
            found.append((node.label.removesuffix("-certify"), read))
    return sorted(found, key=lambda pair: (len(pair[0].partition("-")[0]), pair[0]))  # r2 before r10


def head(found: Sequence[tuple[str, Found]]) -> list[Cell]:
    """The columns: every requirement that some certificate checked, with its bound in small print."""
    wanted = {check["name"]: check["wanted"] for _, one in found for check in one["checks"]}
    return [Cell(title, _bound(name, wanted[name])) for name, (title, _) in REQUIREMENTS.items() if name in wanted]


def _bound(name: str, wanted: Any) -> str:
    if name == "template":
        return "the policy's"
    if name == "leakage":
        return "none"
    return f"at {'least' if name in MOST else 'most'} {wanted:g}"


def rows(found: Sequence[tuple[str, Found]]) -> list[tuple[str, list[Cell]]]:
    """One row a model: its verdict, then every requirement; what was not checked of it is a dash."""
    names = [name for name in REQUIREMENTS if any(c["name"] == name for _, one in found for c in one["checks"])]
    table = []
    for label, one in found:
        checks = {check["name"]: check for check in one["checks"]}
        cells = [Cell(_verdict(one), "", "good" if one["passed"] else "bad")]
        table.append((label, cells + [_cell(name, checks.get(name)) for name in names]))
    return table


def _cell(name: str, check: Found | None) -> Cell:
    if check is None:
        return Cell(NONE)
    text = REQUIREMENTS[name][1](check["found"])
    return Cell(
        text, "" if check["passed"] else "not enough" if name in MOST else "too much", "" if check["passed"] else "bad"
    )


def _verdict(one: Found) -> str:
    if one["passed"]:
        return "passed"
    return "failed, went on by record" if one["on_failure"] == "record" else "failed"


def details(found: Sequence[tuple[str, Found]]) -> list[Certificate]:
    """Everything else that was measured, a model at a time."""
    return [
        Certificate(
            label,
            bool(one["passed"]),
            _verdict(one),
            [check["text"] for check in one["checks"] if not check["passed"]],
            _facts(one),
            [
                (title, name, f"{percent(share['accuracy'])} ({interval(share, percent)})", number(share["count"]))
                for key, title in GROUPS
                for name, share in sorted(one.get(key, {}).items(), key=lambda pair: _place(pair[0]))
            ],
            [
                (mark.replace("_", " "), percent(s["model"]), percent(s["annotators"]), number(s["pairs"]))
                for mark, s in one.get("style", {}).items()
            ],
            _reliability(label, one),
        )
        for label, one in found
    ]


def _place(group: str) -> tuple[int, str]:
    """Grades from the least to the greatest, batches by number, all else by name."""
    return (GRADES.index(group) if group in GRADES else int(group) if group.isdigit() else 0, group)


def _facts(one: Found) -> list[tuple[str, str]]:
    """(name, what was found) of the measures that are no table."""
    facts = [("Held-out pairs", f"{number(one['pairs'])}, of its own kind {number(one['own']['count'])}")]
    if length := one.get("length"):
        matched = length.get("matched")
        same = (
            f"{percent(matched['accuracy'])} ({interval(matched, percent)}, {matched['count']} pairs)"
            if matched
            else NONE
        )
        facts += [
            ("Score a token", f"{exact(length['slope'])}; picks the longer response on {percent(length['picks_longer'])}, "
                              f"the annotators on {percent(length['longer_is_better'])}"),
            ("Equal lengths", same),
        ]  # fmt: skip
    for unsafe in filter(None, (one.get("unsafe"), one.get("unsafe_steering"))):
        facts.append(
            ("Unsafe responses", f"{percent(unsafe['recall'])} of {unsafe['unsafe']} below {unsafe['threshold']:g}, "
                                 f"and {percent(unsafe['false_alarms'])} of {unsafe['safe']} safe ones")
        )  # fmt: skip
    if both := one.get("agreement"):
        shares = "; ".join(
            f"{kind} pairs: {percent(share['accuracy'])}, the other {percent(both['other_by_kind'][kind]['accuracy'])}"
            for kind, share in both["by_kind"].items()
            if kind in both["other_by_kind"]
        )
        facts.append(("With the round's other model", f"orders {percent(both['alike'])} of the pairs alike; {shares}"))
    if overfit := one.get("overfit"):
        facts.append(
            (
                "On its training pairs",
                f"{percent(overfit['train']['accuracy'])}, {signed(overfit['gap'])} over held-out",
            )
        )
    if drift := one.get("drift"):
        means = f"mean score {number(drift['mean'][0])} then, {number(drift['mean'][1])} now"
        facts.append(
            ("Against the model before", f"rank correlation {number(drift['rank_correlation'])} on {drift['responses']} "
                                         f"frozen responses, {percent(drift['flipped'])} of the pairs turned over; {means}")
        )  # fmt: skip
    if changes := one.get("invariance"):
        texts = (f"{name.replace('_', ' ')} {exact(value, 1)}" for name, value in changes.items())
        facts.append(("Scores move, sd, with", ", ".join(texts)))
    leaks = one["leakage"]
    facts.append(
        ("Evaluation prompts in training", f"{leaks['verbatim'] + leaks['respelled']} of {leaks['texts']} word for word, "
                                           f"{percent(leaks['share'])} alike ({percent(leaks['natural'])} is natural)")
    )  # fmt: skip
    weights = one["weights"].get("reward") or ""
    facts.append(("Fingerprints", f"weights {weights[:16]}, tokenizer and template {one['template']['reward'][:16]}"))
    return facts


def _reliability(label: str, one: Found) -> Figure | None:
    bins = one.get("calibration", {}).get("bins", ())
    if not bins:
        return None
    points = [
        Point(
            b["predicted"],
            b["right"],
            f"predicted {percent(b['predicted'])}, found {percent(b['right'])} of {b['pairs']} pairs",
        )
        for b in bins
    ]
    even = Series("perfectly calibrated", [Point(0.5, 0.5), Point(1.0, 1.0)], "muted", marks=False, dashed=True)
    x, y = Axis("predicted probability", low=0.48, high=1.02), Axis("found")
    return figure(f"{label}, reliability", [Series(label, points), even], x, y, size=SMALL)


def leakage(evidence: Evidence) -> list[list[str]]:
    """What the screening before the first round found: one row for prompts, one for responses."""
    nodes = evidence.view.doing("leakage")
    found = evidence.archive.json(nodes[0].ref, "leakage.json") if nodes else None
    if not found:
        return []
    return [
        [what.capitalize(), number(one["texts"]), number(one["corpus"]),
         *(number(one[kind]) for kind in ("verbatim", "respelled", "appended", "near")), percent(one["share"]),
         percent(one["natural"]), "; ".join(p for p in found["problems"] if what in p) or "none"]
        for what in ("prompts", "responses")
        if (one := found.get(what)) and one["texts"]
    ]  # fmt: skip


LEAKAGE_HEAD = ("Evaluation texts", "Looked for", "Among", "Verbatim", "Respelled", "Appended", "Near", "Share alike",
                "Natural", "Problem")  # fmt: skip
