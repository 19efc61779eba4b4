"""`roundhouse`: thin commands over tasks, storage and report. Heavy imports wait until a command needs them."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import keeping, operations
from cli.certify import certify
from cli.layout import laid_out, planned

app = typer.Typer(
    name="roundhouse",
    help="Alignment rounds that survive anything: SFT, reward models, rejection-sampling rounds and PPO, resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = "interrupted; run the same command again to continue\n"
Config = Annotated[str, typer.Argument(help="A campaign's YAML file, or the name of one that comes with the project.")]
Seed = Annotated[int | None, typer.Option(help="Instead of the config's seed.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="file:///... or s3://bucket/prefix, instead of the config's.")
]
Until = Annotated[str | None, typer.Option(help="Stop after this version (v2) or round's reward models (r2-rewards).")]
RuntimeFile = Annotated[str | None, typer.Option("--runtime", help="A YAML file with another runtime.")]


@app.command()
def run(
    config: Config = "tiny",
    seed: Seed = None,
    store: StoreUrl = None,
    until: Until = None,
    runtime: RuntimeFile = None,
    require_cas: Annotated[
        bool, typer.Option("--require-cas", help="Refuse a store that ignores create-only writes.")
    ] = False,
) -> None:
    """Run a campaign in this process, reusing every stage that the store has."""
    from cli import embedded

    place = embedded.choose()  # before Prefect is imported, which reads its settings then
    from tasks import trackers
    from tasks.launch import warm_up

    plan = planned(config, seed, store, runtime, until)
    trackers.check(plan.runtime)
    plan.store.check_conditional(required=require_cas or plan.runtime.require_cas)
    if any(artifact.made() is None for artifact in plan.artifacts.values()):
        todo = sum(artifact.made() is None for artifact in plan.artifacts.values())
        typer.echo(f"{plan.campaign.name}: {todo} of {len(plan.artifacts)} stages to run; starting Prefect", err=True)
        warm_up()
        with embedded.server(place):
            _run_flow(config, seed, store, until, runtime, plan)
        plan = planned(config, seed, store, runtime, until)
    else:
        typer.echo(f"nothing to do: all {len(plan.artifacts)} stages are in the store")
    show_outcome(plan)


def _run_flow(
    config: str, seed: int | None, store: str | None, until: str | None, runtime: str | None, plan: Any
) -> None:
    from cli.progress import Progress
    from flows.bakeoff import compare
    from flows.iterative import iterative
    from tasks.watch import listen_with

    with Progress(plan.campaign.name, [artifact.label for artifact in plan.artifacts.values()]) as progress:
        listen_with(progress.hear)
        if plan.campaign.bake_off is not None:
            compare(config=config, seeds=None if seed is None else [seed], store=store, runtime=runtime)
        else:
            iterative(config=config, seed=seed, store=store, until=until, runtime=runtime)


def show_outcome(plan: Any) -> None:
    """The table of versions, and where the report is."""
    from cli.tables import print_ranking, print_versions
    from tasks.outcome import report_name, write_report

    if "ranking" in plan.artifacts and plan.artifacts["ranking"].made() is not None:
        folder = plan.store.fetch(plan.artifacts["ranking"].ref)
        print_ranking(json.loads((folder / "ranking.json").read_text()))
    made = plan.artifacts["compare"].made() if "compare" in plan.artifacts else None
    if made is not None:
        folder = plan.store.fetch(made.manifest.ref)
        verdicts = {label: v.summary() or {} for label, v in plan.verdicts.items()}
        print_versions(json.loads((folder / "table.json").read_text()), verdicts)
    key = f"reports/{report_name(plan.campaign, plan.digest)}"
    place = f"{plan.store.url.rstrip('/')}/{key}" if plan.store.exists(key) else write_report(plan)
    typer.echo(f"report: {place}")
    if plan.rejected:
        typer.echo(f"error: {plan.rejected}", err=True)
        raise typer.Exit(1)


@app.command()
def plan(
    config: Config = "tiny",
    seed: Seed = None,
    store: StoreUrl = None,
    until: Until = None,
    runtime: RuntimeFile = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First run the campaign in small, to measure time.")
    ] = False,
) -> None:
    """Show what would run, what is reused and why, and what it would take."""
    from cli.plan import print_plan

    found, told = laid_out(config, seed, store, runtime, until, require_data=calibrate)
    if calibrate:
        from cli import calibration

        typer.echo(f"calibration: {calibration.calibrate(found)}", err=True)
    print_plan(found, told)


@app.command()
def status(config: Config = "tiny", seed: Seed = None, store: StoreUrl = None) -> None:
    """Show where a campaign stands."""
    from cli.plan import print_status

    print_status(laid_out(config, seed, store)[0])


@app.command()
def explain(
    config: Config,
    stage: Annotated[str, typer.Argument(help="A stage's label, such as r2-sample.")],
    seed: Seed = None,
    store: StoreUrl = None,
) -> None:
    """Say what names a stage's result, and what changed since the campaign last made it."""
    from cli.plan import print_explanation

    print_explanation(laid_out(config, seed, store)[0], stage)


@app.command()
def report(
    config: Annotated[
        str,
        typer.Argument(help="A campaign: a config, one with another seed (tiny@2), or its name-digest in the store."),
    ] = "tiny",
    other: Annotated[str | None, typer.Argument(help="A second campaign, for a page that compares the two.")] = None,
    seed: Seed = None,
    store: StoreUrl = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the page to this file, not into the store.")] = None,
) -> None:
    """Write the campaign's HTML page anew, also while it is running; with two campaigns, a page that compares them."""
    from cli.pages import write_page

    typer.echo(f"report: {write_page([config, *([other] if other else [])], seed, store, out)}")


@app.command()
def chat(
    config: Config, version: Annotated[str, typer.Argument()] = "v5", seed: Seed = None, store: StoreUrl = None
) -> None:
    """Talk to a version."""
    from cli.chat import chat_with

    raise typer.Exit(chat_with(version_folder(planned(config, seed, store, None), version)[0]))


@app.command()
def export(
    config: Config,
    version: Annotated[str, typer.Argument()],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    seed: Seed = None,
    store: StoreUrl = None,
) -> None:
    """Copy a version with its model card into a folder; it loads with AutoModelForCausalLM.from_pretrained."""
    from cli.export import export_version
    from tasks.outcome import view

    found = planned(config, seed, store, None)
    version_folder(found, version)
    typer.echo(f"exported: {export_version(found.store, view(found), version, folder)}")


def version_folder(plan: Any, version: str) -> tuple[Path, Any]:
    """The verified files of a version, and its artifact."""
    from configs import ConfigError

    if version not in plan.versions:
        raise ConfigError(f"no version {version!r} in {plan.campaign.name}; it has {', '.join(plan.versions)}")
    artifact = plan.versions[version]
    if artifact.made() is None:
        raise ConfigError(f"{version} of {plan.campaign.name} has not been made yet; run `roundhouse run` first")
    return plan.store.fetch(artifact.ref), artifact


operations.add(app)
app.command()(certify)
keeping.add(app)


def main() -> None:
    """The console entry point: every expected error is one line."""
    from configs import ConfigError
    from storage import StorageError, redact
    from storage.errors import one_line

    expected: tuple[type[BaseException], ...] = (ConfigError, StorageError)
    try:
        code = app(standalone_mode=False)
        if code == 130:
            sys.stderr.write(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except typer.exceptions.TyperException as error:  # how the command was written
        sys.stderr.write(f"error: {error.format_message()}\n")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        sys.exit(130)
    except expected as error:
        sys.stderr.write(redact(f"error: {error}\n"))
        sys.exit(2)
    except Exception as error:
        if os.environ.get("ROUNDHOUSE_DEBUG"):
            raise
        sys.stderr.write(redact(f"error: {one_line(error)} (ROUNDHOUSE_DEBUG=1 shows where)\n"))
        sys.exit(1)
