"""The tables of docs/experiments.md: one campaign run with several seeds, its versions and its reward models, as Markdown.

    python -m benchmarks.seeds stories --seeds 1 2 3 4 5 --store URL

Reads results that are in the store; runs nothing. A seed that has not come to its end shows the versions that it has.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from configs import load
from flows.rounds import align
from storage import Store, open_store
from tasks import Run

Summary = Mapping[str, Any]
FIRST = "v0"
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


def mean_of(tables: Sequence[Mapping[str, Sequence[float | None]]]) -> dict[str, list[float | None]]:
    """The mean over the seeds that have the version and the number."""
    labels = list(dict.fromkeys(label for table in tables for label in table))
    found: dict[str, list[float | None]] = {}
    for label in labels:
        columns = zip(*(table[label] for table in tables if label in table), strict=True)
        found[label] = [fmean(known) if (known := [v for v in column if v is not None]) else None for column in columns]
    return found


def markdown(title: str, rows: Mapping[str, Sequence[float | None]]) -> str:
    """A table; what nobody measured is a dash."""
    cell = lambda value: "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    lines = [f"| {title} | {' | '.join(HEADS)} |", f"|---|{'---|' * len(HEADS)}"]
    lines += [f"| {label} | {' | '.join(map(cell, row))} |" for label, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Print one table a seed, their mean, and the reward models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--store", default=None, help="URL; the config's or the usual one if not given")
    given = parser.parse_args()
    store = open_store(given.store)
    found = {seed: results(given.config, seed, store) for seed in given.seeds}
    tables = {seed: rows for seed, one in found.items() if (rows := versions(one))}
    for seed, rows in tables.items():
        print(markdown(f"seed {seed}", rows) + "\n")
    if len(tables) > 1:
        print(markdown(f"mean of {len(tables)} seeds", mean_of(list(tables.values()))) + "\n")
    for seed, one in found.items():
        for label, entry in rewards(one).items():
            print(f"seed {seed}, {label}: {json.dumps(entry)}")


def _mean(value: Mapping[str, float] | None) -> float | None:
    return float(value["mean"]) if value else None


if __name__ == "__main__":
    main()
