"""Claims of the sources as experiments: `python -m benchmarks.claims` runs all of them and prints one table.

    python -m benchmarks.claims                          # all; goes on where it stopped
    python -m benchmarks.claims --only margin,max_of_k   # some
    python -m benchmarks.claims --seeds 1 2 3            # the effect is the mean over seeds, of those that have been made
    python -m benchmarks.claims --table                  # what is known so far; trains nothing
    python -m benchmarks.claims --slots 2 --store URL

Stages lie in the store and are shared with `roundhouse run bake-off`.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch

import benchmarks.claims
from benchmarks.claims.lab import Effect, Lab, pooled
from benchmarks.claims.work import make
from configs import Runtime
from tasks import Artifact, connect
from tasks.launch import stop_all

HELPERS = {"lab", "work", "judges", "__main__"}
HEAD = ("claim", "effect (95 % interval)", "would matter", "power", "n", "seeds", "verdict", "numbers")


def claims() -> list[str]:
    """The names of all claims: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.claims.__path__) if m.name not in HELPERS)


def lines(claim: ModuleType, found: Sequence[Mapping[str, Effect]]) -> list[str]:
    """The claim's part of the table: a line for each of its effects, or one of dashes where its stages are not there.

    found: its effects by part, one mapping a seed.
    """
    text = f"{claim.TEXT} ({claim.SOURCE})"
    if not found:
        return [f"| {text} | - | {claim.MATTERS:g} {claim.UNIT} | - | - | - | not run | - |"]
    rows = []
    for part in found[0]:
        effect = pooled([one[part] for one in found])
        shown = f"{effect.value:+.3f} ({effect.low:+.3f} to {effect.high:+.3f}) {claim.UNIT}"
        power, verdict = f"{100 * effect.power(claim.MATTERS):.0f} %", effect.verdict(claim.MATTERS)
        name = f"{text}: {part}" if part else text
        rows.append(
            f"| {name} | {shown} | {claim.MATTERS:g} | {power} | {effect.count} | {len(found)} | {verdict} | {effect.note} |"
        )
    return rows


def missing(claim: ModuleType, lab: Lab) -> list[Artifact]:
    """What it needs and the store lacks. A claim may say more when some of it is there: gates choose what follows."""
    return [artifact for artifact in claim.stages(lab) if lab.run.store.manifest(artifact.ref) is None]


def effects(claim: ModuleType, labs: Sequence[Lab]) -> list[Mapping[str, Effect]]:
    """The claim's effects by part, of every seed whose stages are there."""
    measured = [claim.measure(lab) for lab in labs if not missing(claim, lab)]
    return [{"": found} if isinstance(found, Effect) else found for found in measured]


def main() -> int:
    """Make what is missing, several stages at a time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="claims, by comma")
    parser.add_argument("--config", default="bake-off")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--store", default=None)
    parser.add_argument("--slots", type=int, default=2, help="stages side by side")
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name] or claims()
    if unknown := set(wanted) - set(claims()):
        parser.error(f"no claim {', '.join(sorted(unknown))}; there are {', '.join(claims())}")
    torch.set_num_threads(1)
    store = connect(given.store, Runtime())
    labs = [Lab(store, given.config, seed) for seed in given.seeds]
    say = lambda line: print(f"  {line}", file=sys.stderr, flush=True)
    table = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    modules = [importlib.import_module(f"benchmarks.claims.{name}") for name in wanted]
    try:
        while not given.table and (todo := [a for module in modules for lab in labs for a in missing(module, lab)]):
            make(labs[0].run, todo, given.slots, say=say)
        for module in modules:
            table += (rows := lines(module, effects(module, labs)))
            print("\n".join(rows), flush=True)
    finally:
        stop_all()
    print("\n" + "\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
