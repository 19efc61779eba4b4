"""The table of versions for a terminal; plain text where stdout is none."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from report.quantities import NONE, number, percent, signed

FIRST = "v0"
WIDTH = 132  # without a terminal: wide enough that no cell is broken


def print_versions(table: Mapping[str, Any], verdicts: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Print every version of a comparison (table.json)."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDTH, no_color=True)
    console.print(versions_table(table, verdicts))


def print_ranking(ranking: Mapping[str, Any]) -> None:
    """Print a bake-off's competitors, best first (ranking.json)."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDTH, no_color=True)
    found = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("competitor", ranking["by"], f"against {ranking['start']}", "p", "", "KL, nats", "tokens"):
        found.add_column(column, justify="left" if column in ("competitor", "") else "right")
    for entry in ranking["entries"]:
        against = entry["against_start"]
        verdict = (
            ""
            if not against
            else "not told apart"
            if not against["significant"]
            else ("better" if against["difference"] > 0 else "worse")
        )
        found.add_row(
            entry["name"],
            number(entry[ranking["by"]]["mean"], 3),
            signed(against["difference"], 3) if against else NONE,
            number(against["corrected"], 3) if against else NONE,
            verdict,
            number(entry["kl"]["mean"], 1) if entry.get("kl") else NONE,
            number(entry["length"], 1),
        )
    console.print(found)


def versions_table(table: Mapping[str, Any], verdicts: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """Gold, both reward models, win rate over v0 with its interval, KL, length and missing EOS of every version."""
    entries = table["versions"]
    by = "gold" if entries and entries[0].get("gold") else "score"
    judge = "gold" if by == "gold" else "reward models"
    found = Table(box=None, header_style="bold", pad_edge=False)
    found.add_column("version", style="bold")
    known = [(column, head) for column, head in _MEANS if any(entry.get(column) for entry in entries)]
    for _, head in known:
        found.add_column(head, justify="right")
    for head in (f"wins over {FIRST} ({judge})", "KL, nats", "tokens", "no EOS"):
        found.add_column(head, justify="right")
    if verdicts is not None:
        found.add_column("gate")
    for entry in entries:
        label = entry["version"]
        cells = [number(entry[column]["mean"]) if entry.get(column) else NONE for column, _ in known]
        cells.append(_wins(table["matrix"].get(label, {}).get(FIRST, {}).get(by)))
        cells.append(number(entry["kl"]["mean"], 1) if entry.get("kl") else NONE)
        cells += [number(entry["length"], 1), percent(entry["missing_eos"], 1)]
        if verdicts is not None:
            cells.append(_gate(verdicts.get(label, {})))
        found.add_row(label, *cells)
    return found


_MEANS = (
    ("gold_helpfulness", "gold helpful"),
    ("gold_safety", "gold safe"),
    ("helpfulness", "helpful model"),
    ("safety", "safe model"),
)


def _gate(verdict: Mapping[str, Any]) -> str:
    """The verdict and the rules behind it."""
    rules = ", ".join(reason["rule"] for reason in verdict.get("reasons", ()))
    return f"{verdict.get('verdict', NONE)}{f': {rules}' if rules else ''}"


def _wins(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return NONE
    rate = pair["win_rate"]
    return f"{percent(rate['mean'])} ({percent(rate['low'])} to {percent(rate['high'])})"
