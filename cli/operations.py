"""The commands that run the house: services, resume, doctor."""

from typing import Annotated

import typer


def up(
    s3: Annotated[bool, typer.Option("--s3", help="Also start a real S3 server, and let the worker use it.")] = False,
) -> None:
    """Start the Prefect server and a worker, with all settings; safe to run again."""
    from cli import services

    with _one_line_errors():
        services.up(s3=s3, say=typer.echo)


def down() -> None:
    """Stop what `up` has started, and nothing else."""
    from cli import services

    with _one_line_errors():
        services.down(say=typer.echo)


def services_status() -> None:
    """Show which services run."""
    from cli import services

    for name, line in services.status().items():
        typer.echo(f"{name:8}{line}")


def s3() -> None:
    """Start a real S3 server on loopback (rclone over .roundhouse/s3), and say how to use it."""
    from cli import services
    from cli.site import Site

    with _one_line_errors():
        site = Site()
        site.state.mkdir(mode=0o700, exist_ok=True)
        services.start_s3(site, typer.echo)
        typer.echo(f"use it with:  . {site.state / 's3.env'}")
        typer.echo("stop it with: roundhouse down")


def resume(
    config: Annotated[str | None, typer.Argument(help="The campaign; without it, that of the last run.")] = None,
    here: Annotated[bool, typer.Option("--here", help="In this process, even if a worker is online.")] = False,
) -> None:
    """Continue a campaign's last run; one whose host is gone is forced to Crashed first."""
    from cli.main import run
    from cli.resume import resume as continue_last

    with _one_line_errors():
        continue_last(config, run, here=here, say=typer.echo)


def doctor(
    store: Annotated[str | None, typer.Option(help="A store to probe instead of the default one.")] = None,
) -> None:
    """Check versions, store, disk, memory, clock and ports; one line each, in seconds."""
    from cli.doctor import examine, show

    raise typer.Exit(show(examine(store), typer.echo))


def refresh(
    config: Annotated[str, typer.Argument(help="A refresh's YAML file, or the name of one.")] = "refresh",
    seed: Annotated[int | None, typer.Option(help="Instead of the refresh's and the campaign's.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="file:///... or s3://bucket/prefix.")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="A YAML file with another runtime.")] = None,
) -> None:
    """Train a campaign's base on the documents that are new, in this process, and say what that asks for."""
    from cli.refresh import refresh as refresh_now

    with _one_line_errors():
        refresh_now(config, seed, store, runtime)


def schedule(
    state: Annotated[str, typer.Argument(help="on, off, or show.")] = "show",
) -> None:
    """Switch the scheduled refreshes on or off; say when they run."""
    from cli import schedule as schedules

    wanted = {"on": True, "off": False, "show": None}
    if state not in wanted:
        typer.echo(f"error: schedule {state!r}: want on, off or show", err=True)
        raise typer.Exit(2)
    with _one_line_errors():
        schedules.switch(wanted[state], say=typer.echo)


def add(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("services")(services_status)
    app.command("s3")(s3)
    app.command("resume")(resume)
    app.command("refresh")(refresh)
    app.command("schedule")(schedule)
    app.command("doctor")(doctor)


class _one_line_errors:
    """Tell an expected error in one line (a service's log may follow) and leave with status 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from cli.site import ServiceError

        if isinstance(error, (ServiceError, LookupError)):
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
