"""Claims of the sources as experiments: `python -m benchmarks.claims` runs all of them and prints one table.

    python -m benchmarks.claims                          # all; goes on where it stopped
    python -m benchmarks.claims --only margin,max_of_k   # some
    python -m benchmarks.claims --table                  # what is known so far; computes nothing new
    python -m benchmarks.claims --slots 2 --store URL

Stages lie in the store and are shared with `roundhouse run bake-off`; a finished claim is remembered by what it measured.
"""

import argparse
import importlib
import pkgutil
import sys
from types import ModuleType

import benchmarks.claims
from benchmarks.claims.lab import Effect, Lab
from benchmarks.claims.work import make
from configs import Runtime
from tasks import connect
from tasks.launch import stop_all

HELPERS = {"lab", "work", "__main__"}
HEAD = ("claim", "effect (95 % interval)", "would matter", "power", "n", "verdict", "numbers")


def claims() -> list[str]:
    """The names of all claims: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.claims.__path__) if m.name not in HELPERS)


def row(claim: ModuleType, effect: Effect | None) -> str:
    """One line of the table; a claim whose stages are not there is a line of dashes."""
    text = f"{claim.TEXT} ({claim.SOURCE})"
    if effect is None:
        return f"| {text} | - | {claim.MATTERS:g} {claim.UNIT} | - | - | not run | - |"
    shown = f"{effect.value:+.3f} ({effect.low:+.3f} to {effect.high:+.3f}) {claim.UNIT}"
    power = f"{100 * effect.power(claim.MATTERS):.0f} %"
    verdict = effect.verdict(claim.MATTERS)
    return f"| {text} | {shown} | {claim.MATTERS:g} | {power} | {effect.count} | {verdict} | {effect.note} |"


def main() -> int:
    """Make what is missing, claim by claim, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="claims, by comma")
    parser.add_argument("--config", default="bake-off")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default=None)
    parser.add_argument("--slots", type=int, default=2, help="stages side by side")
    parser.add_argument("--table", action="store_true", help="compute nothing")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name] or claims()
    if unknown := set(wanted) - set(claims()):
        parser.error(f"no claim {', '.join(sorted(unknown))}; there are {', '.join(claims())}")
    lab = Lab(connect(given.store, Runtime()), given.config, given.seed)
    modules = {name: importlib.import_module(f"benchmarks.claims.{name}") for name in wanted}
    needs = {name: list(module.stages(lab)) for name, module in modules.items()}
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    try:
        for name, module in modules.items():
            if not given.table:
                make(
                    lab.run, needs[name], given.slots, say=lambda line: print(f"  {line}", file=sys.stderr, flush=True)
                )
            there = all(lab.run.store.manifest(artifact.ref) is not None for artifact in needs[name])
            lines.append(row(module, module.measure(lab) if there else None))
            print(lines[-1], flush=True)
    finally:
        stop_all()
    print("\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
