"""The tables of docs/experiments.md: one campaign run with several seeds, its versions and its reward models, as Markdown.

    python -m benchmarks.seeds stories --seeds 1 2 3 4 5 --store URL

Reads results that are in the store; runs nothing. A seed that has not come to its end shows the versions that it has.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from configs import load
from flows.rounds import align
from storage import Store, open_store
from tasks import Run
from tasks.run import store_url

Summary = Mapping[str, Any]
Spread = tuple[float, float | None]  # a mean, half the width of its 95 % interval
FIRST = "v0"
# Student's t at 97.5 % for 1, 2, .. degrees of freedom: the 95 % interval of a mean over 2, 3, .. seeds.
T = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216)
HEADS = ("gold helpful", "gold safe", "helpful model", "safe model", "wins over v0", "KL, nats", "tokens", "no EOS")


def results(config: str, seed: int, store: Store) -> dict[str, Summary]:
    """The summaries of the stages that are in the store, by label; of `compare` its table."""
    campaign = load(config, seed=seed)
    run = Run(campaign, store, campaign.runtime, mode="plan")
    align(run)
    found: dict[str, Summary] = {}
    for label, artifact in run.artifacts.items():
        made = artifact.made()
        if made is None:
            continue
        found[label] = made.summary
        if label == "compare":
            found[label] = json.loads((store.fetch(artifact.ref) / "table.json").read_text())
    return found


def versions(found: Mapping[str, Summary]) -> dict[str, list[float | None]]:
    """Of each version the numbers under HEADS; scores under the last reward models once the comparison is there."""
    summaries = {str(s["version"]): s for label, s in found.items() if label.endswith("-evaluate")}
    scored = {str(entry["version"]): entry for entry in found.get("compare", {}).get("versions", ())}
    rows: dict[str, list[float | None]] = {}
    for version, summary in summaries.items():
        last = scored.get(version, {})
        wins = summary["against"].get(FIRST, {})
        rate = (wins.get("gold") or wins.get("score") or {}).get("win_rate")
        rows[version] = [
            _mean(summary.get("gold_helpfulness")),
            _mean(summary.get("gold_safety")),
            _mean(last.get("helpfulness")),
            _mean(last.get("safety")),
            _mean(rate),
            _mean(summary.get("kl")),
            float(summary["length"]),
            float(summary["missing_eos"]),
        ]
    return rows


def rewards(found: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """Of each reward model its accuracy on held-out pairs of its own kind: {accuracy, low, high, pairs}."""
    held = {label: s["held_out"] for label, s in found.items() if "held_out" in s and "mix" in s}
    return {label: {"all": entry["pairs"], **(entry.get("own") or {})} for label, entry in held.items()}


def mean_of(tables: Sequence[Mapping[str, Sequence[float | None]]]) -> dict[str, list[Spread | None]]:
    """The mean over the seeds that have the version and the number, with its 95 % interval over seeds."""
    labels = list(dict.fromkeys(label for table in tables for label in table))
    found: dict[str, list[Spread | None]] = {}
    for label in labels:
        columns = zip(*(table[label] for table in tables if label in table), strict=True)
        found[label] = [spread([value for value in column if value is not None]) for column in columns]
    return found


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and half the width of its 95 % interval by Student's t; None of nothing, no interval of one or of too many."""
    if not values:
        return None
    if not 2 <= len(values) <= len(T) + 1:
        return fmean(values), None
    return fmean(values), T[len(values) - 2] * stdev(values) / len(values) ** 0.5


def gains(found: Mapping[str, Summary]) -> dict[str, Mapping[str, float]]:
    """Of each version the paired difference to v0 in gold, by the piecewise rule: {mean, low, high} over the prompts."""
    summaries = {str(s["version"]): s["against"].get(FIRST, {}) for label, s in found.items() if "against" in s}
    return {version: seen["gold"]["difference"] for version, seen in summaries.items() if "gold" in seen}


def markdown(title: str, rows: Mapping[str, Sequence[Any]], heads: Sequence[str] = HEADS) -> str:
    """A table; what nobody measured is a dash."""
    lines = [f"| {title} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    lines += [f"| {label} | {' | '.join(map(_cell, row))} |" for label, row in rows.items()]
    return "\n".join(lines)


def accuracies(every: Mapping[int, Mapping[str, Summary]]) -> dict[str, list[Any]]:
    """A row a reward model: its accuracy on held-out pairs of its own kind, mean over the seeds, then seed by seed."""
    held = {seed: rewards(found) for seed, found in every.items()}
    labels = sorted({label for one in held.values() for label in one})
    rows: dict[str, list[Any]] = {}
    for label in labels:
        seen = [one.get(label, {}).get("accuracy") for one in held.values()]
        rows[label] = [spread([value for value in seen if value is not None]), *seen]
    return rows


def main() -> None:
    """Print one table a seed, their mean, and the reward models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--store", default=None, help="URL; the config's or the usual one if not given")
    given = parser.parse_args()
    store = open_store(store_url(given.store, load(given.config, require_data=False).runtime))
    found = {seed: results(given.config, seed, store) for seed in given.seeds}
    tables = {seed: rows for seed, one in found.items() if (rows := versions(one))}
    for seed, rows in tables.items():
        print(markdown(f"seed {seed}", rows) + "\n")
    if len(tables) > 1:
        print(markdown(f"mean of {len(tables)} seeds", mean_of(list(tables.values()))) + "\n")
    heads = ("mean", *(f"seed {seed}" for seed in found))
    print(markdown("reward model, accuracy on own kind", accuracies(found), heads) + "\n")
    for seed, one in found.items():
        shown = (f"{v} {d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for v, d in gains(one).items())
        print(f"seed {seed}, gold against {FIRST}: {', '.join(shown) or '-'}")


def _cell(value: float | Spread | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        mean, half = value
        return _cell(mean) if half is None else f"{_cell(mean)} +- {_cell(half)}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _mean(value: Mapping[str, float] | None) -> float | None:
    return float(value["mean"]) if value else None


if __name__ == "__main__":
    main()
