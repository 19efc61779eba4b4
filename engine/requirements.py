"""What was measured against what is required: one check a requirement, each with a sentence that says both."""

from collections.abc import Mapping
from typing import Any

from configs.certify import Certify, Requirements

Check = dict[str, Any]  # name, found, wanted, passed, text


def judge_all(recipe: Certify, found: Mapping[str, Any]) -> list[Check]:
    """Every requirement that is set and can be measured here, in the order of the config.

    Args:
        found: the certificate's measures (engine.certify); without a held-out pair only what needs none.
    """
    require = recipe.require
    pairs = _least("pairs", f"held-out {found['kind']} pairs", found["own"]["count"], require.pairs, "{:.0f}")
    safety_term = bool(recipe.reward.config.get("safety_weight"))  # without one the zero of a score means nothing
    checks = [pairs, *(_measured(require, found, safety_term) if "length" in found else ())]
    if require.template == "same":
        checks.append(_template(found["template"]))
    if recipe.leakage.on_leak == "refuse":
        checks.append(_leakage(found["leakage"]))
    return [check for check in checks if check is not None]


def _measured(require: Requirements, found: Mapping[str, Any], safety_term: bool) -> list[Check | None]:
    own, length, overfit = found["own"], found["length"], found["overfit"]
    checks = [
        _least("accuracy", "held-out accuracy", own["accuracy"], require.accuracy),
        _least("accuracy_low", "lower end of the accuracy's interval", own["low"], require.accuracy_low),
        _most("calibration_error", "calibration error", found["calibration"]["error"], require.calibration_error),
        _most(
            "longer_excess",
            "share of pairs on which it picks the longer response, above the annotators'",
            length["picks_longer"] - length["longer_is_better"],
            require.longer_excess,
        ),
        _most(
            "length_correlation",
            "correlation of score gaps with length gaps",
            abs(length["correlation"]),
            require.length_correlation,
        ),
        _least(
            "over_length",
            "accuracy above that of always taking the longer or the shorter response",
            own["accuracy"] - length["rule"],
            require.over_length,
        ),
        _least(
            "length_free_accuracy",
            "accuracy without the slope on length",
            length["without_slope"]["accuracy"],
            require.length_free_accuracy,
        ),
        _most(
            "overfit_gap",
            "accuracy on training pairs above that on held-out ones",
            overfit["gap"] if overfit else None,
            require.overfit_gap,
        ),
    ]
    if found["kind"] == "safety" and safety_term:
        what = f"upper end of the interval of the recall of unsafe responses below {found['unsafe']['threshold']:g}"
        checks.append(_least("unsafe_recall", what, found["unsafe"]["recall_high"], require.unsafe_recall))
    return [*checks, _invariant(found["invariance"], require.invariance), _drift(found.get("drift"), require.drift)]


def _least(name: str, what: str, found: float | None, wanted: float | None, form: str = "{:.3f}") -> Check | None:
    if wanted is None or found is None:
        return None
    text = f"{what} {form.format(found)}, at least {wanted:g} wanted"
    return {"name": name, "found": found, "wanted": wanted, "passed": found >= wanted, "text": text}


def _most(name: str, what: str, found: float | None, wanted: float | None) -> Check | None:
    if wanted is None or found is None:
        return None
    text = f"{what} {found:.3f}, at most {wanted:g} wanted"
    return {"name": name, "found": found, "wanted": wanted, "passed": found <= wanted, "text": text}


def _invariant(found: Mapping[str, float | None], wanted: float | None) -> Check | None:
    """The worst of the changes; one that could not be measured is the worst of all."""
    if wanted is None:
        return None
    worst = max(found, key=lambda name: float("inf") if found[name] is None else float(found[name] or 0.0))
    value = found[worst]
    change = "cannot be computed: the config names no pad token" if value is None else f"moves scores by {value:.2g} sd"
    text = f"invariance: {worst} {change}, at most {wanted:g} sd wanted"
    return {
        "name": "invariance",
        "found": value,
        "wanted": wanted,
        "passed": value is not None and value <= wanted,
        "text": text,
    }


def _drift(found: Mapping[str, Any] | None, wanted: float | None) -> Check | None:
    return (
        None
        if found is None
        else _least("drift", "rank correlation with the model before it", found["rank_correlation"], wanted)
    )


def _template(found: Mapping[str, Any]) -> Check:
    text = f"template and tokenizer {found['reward'][:12]}, the policy's {found['policy'][:12]} wanted"
    return {
        "name": "template",
        "found": found["reward"][:12],
        "wanted": found["policy"][:12],
        "passed": bool(found["same"]),
        "text": text,
    }


def _leakage(found: Mapping[str, Any]) -> Check:
    problems = found["problems"]
    exact = found["verbatim"] + found["respelled"]
    return {"name": "leakage", "found": exact, "wanted": 0, "passed": not problems, "text": "; ".join(problems)}
