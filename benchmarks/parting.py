"""The tables of docs/trust.md: where reward models and truth part in a campaign that has ended, and what the gate did.

    python -m benchmarks.parting tiny              # a config; --seed, --store

Reads results that are in the store; runs nothing. Prints Markdown: versions by the models that steered them and by the
truth, best of n, the wins by every judge, and the range of each number that a certificate may require.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from configs import load
from flows.rounds import align
from storage import Store, open_store
from tasks import Run
from tasks.run import store_url

Found = Mapping[str, Any]


def read(config: str, seed: int | None, store: Store) -> tuple[Found, dict[str, Found], list[Found]]:
    """The matrix, label -> what each gate said, and the certificates.

    Raises:
        SystemExit: the campaign has not come to its matrix.
    """
    campaign = load(config) if seed is None else load(config, seed=seed)
    run = Run(campaign, store, campaign.runtime, mode="plan")
    align(run)
    made = {label: one for label, artifact in run.artifacts.items() if (one := artifact.made())}
    if "matrix" not in made:
        raise SystemExit(f"{config}: its matrix is not in {store.url}; run the campaign first")
    table = json.loads((store.fetch(run.artifacts["matrix"].ref) / "matrix.json").read_text())
    gates = {label.removesuffix("-gate"): one.summary for label, one in made.items() if label.endswith("-gate")}
    papers = [
        json.loads((store.fetch(run.artifacts[label].ref) / "certificate.json").read_text())
        for label in made
        if label.endswith("-certify")
    ]
    return table, gates, papers


def spread(value: Found | None) -> str:
    """A mean with its 95 % interval."""
    return "-" if value is None else f"{value['mean']:+.2f} ({value['low']:+.2f} to {value['high']:+.2f})"


def versions(table: Found, gates: Mapping[str, Found]) -> list[str]:
    """One line a version after v0: KL, proxy, truth, verdict."""
    lines = [
        "| version | KL to v0, nats | by the models that steered it | by the truth | the gate |",
        "|---|---|---|---|---|",
    ]
    for gap in table["gaps"]:
        said = gates.get(gap["version"])
        if said is None:
            continue
        reasons = "; ".join(reason["text"] for reason in said.get("reasons", ()))
        verdict = f"{said['verdict']}: {reasons}" if reasons else said["verdict"]
        lines.append(
            f"| {gap['version']} | {gap['kl']:.2f} | {spread(gap['proxy'])} | {spread(gap['truth'])} | {verdict} |"
        )
    part = table["parting"]
    lines.append("")
    lines.append(f"Parting: {json.dumps(part)}" if part else "They part nowhere.")
    return lines


def best_of_n(table: Found) -> list[str]:
    """Gain over one sample, in standard deviations, a line a curve."""
    lines = []
    for number, curve in enumerate(table["best_of_n"], start=1):
        points = [point for point in curve["points"] if point["n"] > 1]
        if not lines:
            head = " | ".join(f"n = {point['n']} (KL {point['kl']:.2f})" for point in points)
            lines += [f"| | {head} |", "|---" * (len(points) + 1) + "|"]
        name = curve.get("round") or curve.get("source") or number
        for who in ("proxy", "truth"):
            cells = (spread(point.get(who)) for point in points)
            lines.append(f"| {name}, {who} | {' | '.join(cells)} |")
        lines.append(f"| {name}, peaks | {json.dumps({k: v and v.get('peak_kl') for k, v in curve['fit'].items()})} |")
    return lines


def wins(table: Found) -> list[str]:
    """Share of prompts on which each version beats v0, by every judge."""
    names = [judge["name"] for judge in table["judges"]]
    lines = [f"| wins over v0 by | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for version in table["versions"]:
        row = table["cells"][version]
        cells = (f"{100 * row[name]['wins']['mean']:.0f} %" if name in row else "-" for name in names)
        lines.append(f"| {version} | {' | '.join(cells)} |")
    return lines


def ranges(papers: list[Found]) -> list[str]:
    """Least and largest of what the certificates found, by requirement."""
    found: dict[str, list[float]] = {}
    for paper in papers:
        for check in paper["checks"]:
            if isinstance(check["found"], int | float):
                found.setdefault(check["name"], []).append(float(check["found"]))
    return [f"- {name}: {min(all_):.3g} to {max(all_):.3g} ({len(all_)} models)" for name, all_ in found.items()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("config")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--store", default=None)
    asked = parser.parse_args()
    store = open_store(store_url(asked.store, load(asked.config, require_data=False).runtime))
    table, gates, papers = read(asked.config, asked.seed, store)
    for part in (versions(table, gates), best_of_n(table), wins(table), ranges(papers)):
        print(*part, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
