"""The commands that look after a store: verify, gc, forget."""

from typing import Annotated, Any

import typer

DAY = 86_400.0
KINDS = ("certificate", "corpus", "model", "report", "reward", "rows")  # of artifacts


def verify(
    config: Annotated[str, typer.Argument(help="A campaign.")] = "tiny",
    seed: Annotated[int | None, typer.Option(help="Instead of the config's seed.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="Instead of the config's.")] = None,
) -> None:
    """Hash every file of a campaign again, and print one root hash for the whole of it."""
    from cli.costs import human
    from cli.layout import planned
    from storage.verify import verify as hash_again

    plan = planned(config, seed, store, None)
    found = hash_again(plan.store, plan.campaign.name, plan.digest)
    for problem in found.problems:
        typer.echo(f"damaged: {problem}")
    typer.echo(f"{found.artifacts} artifacts, {found.files} files, {human(found.bytes, 'B')}; root {found.root}")
    if found.problems:
        typer.echo("run the campaign again to make the damaged ones anew")
        raise typer.Exit(1)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it only say what would go.")] = False,
    grace_days: Annotated[float, typer.Option(help="Leave alone what was touched in the last so many days.")] = 7.0,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="KIND=DAYS instead of --grace-days for one kind of artifact, such as rows=90 or model=1."),
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also save points of stages that never finished.")
    ] = False,
    store: Annotated[str | None, typer.Option("--store", help="Instead of the default one.")] = None,
) -> None:
    """Remove what no campaign, alias or resumable work can reach."""
    from cli.costs import human
    from storage.gc import sweep

    opened = _open(store)
    swept = sweep(opened, dry_run=not yes, grace=grace_days * DAY, unfinished=unfinished, keep=_policy(keep or []))
    for item in swept.items:
        typer.echo(
            f"{'would remove' if swept.dry_run else 'removed'} {item.kind:<12} {human(item.bytes, 'B'):>8}  {item.key}"
        )
    for line in opened.news():
        typer.echo(f"note: {line}")
    done = "would free" if swept.dry_run else "freed"
    typer.echo(f"{done} {human(swept.bytes, 'B')} in {len(swept.items)} items; {swept.kept} artifacts stay")
    if swept.uploads:
        typer.echo(f"unfinished uploads: {swept.uploads}")
    if swept.dry_run and swept.items:
        typer.echo("nothing was removed; add --yes to remove")


def _policy(keep: list[str]) -> dict[str, float]:
    """KIND=DAYS, each, in seconds."""
    found = {}
    for text in keep:
        kind, _, days = text.partition("=")
        try:
            found[kind] = float(days) * DAY
        except ValueError:
            raise typer.BadParameter(f"{text!r}: want KIND=DAYS, such as rows=90") from None
        if kind not in KINDS:
            raise typer.BadParameter(f"{text!r}: no kind {kind!r}; there are {', '.join(KINDS)}")
    return found


def forget(
    config: Annotated[str, typer.Argument(help="A campaign.")],
    seed: Annotated[int | None, typer.Option(help="Instead of the config's seed.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="Instead of the config's.")] = None,
) -> None:
    """Remove a campaign's record, so that gc may remove what only it reached."""
    from cli.layout import planned
    from storage.gc import forget as remove_record

    plan = planned(config, seed, store, None)
    remove_record(plan.store, plan.campaign.name, plan.digest)
    typer.echo(f"forgotten: {plan.campaign.name}-{plan.digest}; `roundhouse gc` now shows what may go")


def _open(store: str | None) -> Any:
    from configs import Runtime
    from tasks import connect

    return connect(store, Runtime())


def add(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("verify")(verify)
    app.command("gc")(gc)
    app.command("forget")(forget)
