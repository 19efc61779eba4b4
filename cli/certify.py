"""`roundhouse certify`: score a published or local suite with a reward model, or with a policy and its reference."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from configs import ConfigError
from configs.load import data_root

ROOT = Path(__file__).resolve().parent.parent


def certify(
    model: Annotated[
        str, typer.Argument(help="A model folder, or CAMPAIGN/LABEL such as tiny/r5-helpfulness or tiny/v5.")
    ],
    suite: Annotated[str, typer.Option(help="A file, a folder of files, or the name of one under ROUNDHOUSE_DATA.")],
    reference: Annotated[
        str | None, typer.Option(help="For a policy: score by its log-probs over this model's.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="Instead of the config's.")] = None,
    rows: Annotated[int, typer.Option(help="Responses scored at a time.", min=1)] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
) -> None:
    """Score a suite (RewardBench 1 and 2 by their official rules, LLMBar, HHH, or pairs of your own)."""
    places = [str(find_suite(suite)), str(find_model(model, store))]
    if reference is not None:
        places += ["--reference", str(find_model(reference, store))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-P", "-m", "engine.panel", *places, "--rows", str(rows)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ConfigError((done.stderr or "see above").strip().splitlines()[-1])
    if as_json:
        typer.echo(done.stdout.strip())
    else:
        show(json.loads(done.stdout))


def find_suite(name: str) -> Path:
    """The file or folder meant by a path or by a name under the data root."""
    tried = [Path(name).expanduser(), data_root() / name, data_root() / "data" / name]
    for place in tried:
        if place.exists():
            return place.absolute()
    raise ConfigError(
        f"no suite {name!r}: neither a path nor under {data_root()} (set ROUNDHOUSE_DATA to the data's folder)"
    )


def find_model(name: str, store: str | None) -> Path:
    """A model folder, or the verified files of CAMPAIGN/LABEL."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.absolute()
    config, slash, label = name.rpartition("/")
    if not slash or folder.exists():
        raise ConfigError(f"{name}: no model folder (config.json), and no CAMPAIGN/LABEL such as tiny/r5-helpfulness")
    from cli.layout import planned

    plan = planned(config, None, store, None, require_data=False)
    models = {label: a for label, a in plan.artifacts.items() if a.stage.kind in ("model", "reward")}
    if label not in models:
        raise ConfigError(f"no model {label!r} in {plan.campaign.name}; it has {', '.join(models)}")
    if models[label].made() is None:
        raise ConfigError(f"{label} of {plan.campaign.name} has not been made yet; run `roundhouse run` first")
    found: Path = plan.store.fetch(models[label].ref)
    return found


def show(result: Mapping[str, Any]) -> None:
    """The result as a table."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(result["suite"])
    table.add_column("prompts", justify="right")
    table.add_column("score", justify="right")
    table.add_column("95 %", justify="right")
    within = lambda found: "" if found is None else f"{found[0]:.3f} to {found[1]:.3f}"
    for name, value in result["subsets"].items():
        table.add_row(name, str(result["counts"][name]), f"{value:.3f}", within(result.get("intervals", {}).get(name)))
    for name, value in result.get("sections", {}).items():
        table.add_row(name, "", f"{value:.3f}", "", style="bold")
    if result["score"] is not None:
        table.add_row(
            "all", str(result["questions"]), f"{result['score']:.3f}", within(result.get("interval")), style="bold"
        )
    console.print(table)
    if result["score"] is None:
        console.print("no overall score: RewardBench counts its prior sets only beside its other sections")
    cut = (
        f"; {result['cut']} of {result['responses']} responses cut to {result['max_tokens']} tokens"
        if result["cut"]
        else ""
    )
    console.print(f"{result['kind']} reward{cut}")
