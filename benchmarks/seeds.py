"""The tables of docs/experiments.md: one campaign run with several seeds, its versions and its reward models, as Markdown.

    python -m benchmarks.seeds stories --seeds 1 2 3 4 5 --store URL

Reads results that are in the store; runs nothing. A seed that has not come to its end shows the versions that it has.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq

from configs import load
from engine.judges import Judge, judge
from flows.rounds import align
from storage import Store, open_store
from storage.rows import parts
from tasks import Run
from tasks.run import store_url

Summary = Mapping[str, Any]
Spread = tuple[float, float | None]  # a mean, half the width of its 95 % interval
FIRST = "v0"
# Student's t at 97.5 % for 1, 2, .. degrees of freedom: the 95 % interval of a mean over 2, 3, .. seeds.
T = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216)
HEADS = (
    "gold helpful",
    "swapped",
    "gold safe",
    "helpful model",
    "safe model",
    "wins over v0",
    "KL, nats",
    "tokens",
    "no EOS",
)


def results(config: str, seed: int, store: Store) -> dict[str, Summary]:
    """The summaries of the stages that are in the store, by label; of `compare` its table.

    Where there is a gold judge, evaluations also have `swapped`, selections `all`, `selected` and `best` of the newest round.
    """
    campaign = load(config, seed=seed)
    run = Run(campaign, store, campaign.runtime, mode="plan")
    align(run)
    gold = judge(campaign.judge)
    found: dict[str, Summary] = {}
    for label, artifact in run.artifacts.items():
        made = artifact.made()
        if made is None:
            continue
        found[label] = made.summary
        if label == "compare":
            found[label] = json.loads((store.fetch(artifact.ref) / "table.json").read_text())
        elif gold and label.endswith("-evaluate"):
            rows = _read(store.fetch(artifact.ref) / "responses.parquet", "prompt_id", "messages", "text")
            found[label] = found[label] | {"swapped": swapped(rows, gold)}
        elif gold and label.endswith("-select"):
            asked = _read(store.fetch(run.artifacts["prompts"].ref) / "rows.parquet", "id", "messages")
            rows = _read(store.fetch(artifact.ref) / "audit.parquet", "prompt_id", "source", "role", "text")
            found[label] = found[label] | picks(rows, {row["id"]: row["messages"] for row in asked}, gold)
    return found


def swapped(rows: Sequence[Summary], gold: Judge) -> float:
    """Gold helpfulness of each response to the request of the next row: what a policy gets that does not read its own."""
    return fmean(
        gold.score(asked["messages"], row["text"]).helpfulness for row, asked in zip(rows, [*rows[1:], rows[0]])
    )


def picks(rows: Sequence[Summary], asked: Mapping[str, Any], gold: Judge) -> dict[str, float]:
    """Gold helpfulness of the newest round's samples: of all, of those selected, of the best by the judge of each prompt."""
    newest = max((str(row["source"]) for row in rows), key=lambda source: int(source.rpartition("-")[2]))
    by_prompt: dict[str, list[float]] = {}
    taken: list[float] = []
    for row in (row for row in rows if row["source"] == newest):
        value = gold.score(asked[row["prompt_id"]], row["text"]).helpfulness
        by_prompt.setdefault(row["prompt_id"], []).append(value)
        taken += [value] if row["role"] == "selected" else []
    every = [value for values in by_prompt.values() for value in values]
    found = {"all": fmean(every), "best": fmean(map(max, by_prompt.values()))}
    return found | ({"selected": fmean(taken)} if taken else {})


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
            summary.get("swapped"),
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
    held = [rewards(found) for found in every.values()]
    return _by_seed(
        {label: [one.get(label, {}).get("accuracy") for one in held] for label in sorted(set().union(*held))}
    )


def rounds(every: Mapping[int, Mapping[str, Summary]]) -> dict[str, list[Any]]:
    """A row a round: the probe's temperature, then gold of all its samples, of those selected and of the judge's choice."""
    labels = sorted(
        {label.removesuffix("-select") for found in every.values() for label in found if "-select" in label}
    )
    rows = {}
    for label in labels:
        seen = [found.get(f"{label}-select", {}) for found in every.values()]
        hot = [found.get(f"{label}-probe", {}).get("temperature") for found in every.values()]
        columns = [hot, *([one.get(name) for one in seen] for name in ("all", "selected", "best"))]
        rows[label] = [spread([value for value in column if value is not None]) for column in columns]
    return rows


def _by_seed(columns: Mapping[str, Sequence[float | None]]) -> dict[str, list[Any]]:
    return {label: [spread([v for v in seen if v is not None]), *seen] for label, seen in columns.items()}


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
    heads = ("temperature", "gold helpful of all samples", "of the selected", "of the judge's choice")
    print(markdown("round", rounds(found), heads) + "\n")
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


def _read(file: Path, *columns: str) -> list[dict[str, Any]]:
    return [row for part in parts(file) for row in pq.read_table(part, columns=list(columns)).to_pylist()]


def _mean(value: Mapping[str, float] | None) -> float | None:
    return float(value["mean"]) if value else None


if __name__ == "__main__":
    main()
