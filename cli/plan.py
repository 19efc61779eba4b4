"""What would run and why, where a campaign stands, and what names a stage."""

import json
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.calibration import estimate, in_time, known_costs, money_of
from cli.costs import human
from cli.forecast import Forecast
from configs import ConfigError
from storage import Manifest
from tasks import Artifact, Run

console = Console(highlight=False, soft_wrap=True)
WIDE = 116  # characters from which on all columns are shown
COLUMNS = ("params", "steps", "tokens", "FLOPs", "time", "memory", "stored", "money")
NARROW = ("tokens", "time", "memory", "stored", "money")  # else these; FLOPs where no time is known


def print_plan(run: Run, told: Sequence[Run] = ()) -> None:
    """One line a stage: reused or to be done, what it would take, and the reason; `explain` says more about one of them.

    told: other runs whose finished stages say what stages cost.
    """
    if not run.artifacts:
        console.print("nothing has arrived since the last refresh: none is due")
        return
    last = run.record_or_none()
    notes = last.notes() if last else {}
    costs = known_costs(run, told)
    forecasts = {label: estimate(artifact, run.runtime, costs) for label, artifact in run.artifacts.items()}
    todo = {label: one for label, one in forecasts.items() if run.artifacts[label].made() is None}
    rows = []
    for artifact in run.artifacts.values():
        made = artifact.made()
        cells = _forecast_cells(forecasts[artifact.label]) if made is None else _made_cells(made.manifest)
        rows.append([artifact.label, "reuse" if made else "run", *cells, _reason(run, artifact, notes)])
    _print_table(rows)
    done = len(run.artifacts) - len(todo)
    console.print(f"{len(run.artifacts)} stages: {done} reused, {len(todo)} to run; store {run.store.url}")
    for line in _totals(run, forecasts, todo, money_of(todo.values())) if todo else ():
        console.print(fill(line, console.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    for line in run.store.warnings:
        console.print(f"note: {line}")


def _print_table(rows: list[list[str]]) -> None:
    """Stage, what is done with it, the columns that say something and that there is room for, and why."""
    names = ["stage", "", *COLUMNS, "why"]
    told = {name for place, name in enumerate(names) if any(row[place] for row in rows)}
    if console.width < WIDE:
        told &= {"", "stage", "why", *NARROW, *(() if "time" in told else ("FLOPs",))}
    places = [place for place, name in enumerate(names) if name in told]
    room = console.width - sum(max(len(row[p]) for row in [names, *rows]) + 2 for p in places[:-1])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place in places:
        table.add_column(names[place], no_wrap=True, justify="right" if names[place] in COLUMNS else "left")
    for row in rows:
        cells = [shorten(row[place], max(8, room)) if names[place] == "why" else row[place] for place in places]
        table.add_row(*(f"[bold]{cell}[/bold]" if cell == "run" else cell for cell in cells))
    console.print(table)


def _totals(run: Run, forecasts: dict[str, Forecast], todo: dict[str, Forecast], money: float | None) -> Iterator[str]:
    """What everything together takes, and what the columns mean."""
    total = lambda column: sum(getattr(one, column) for one in todo.values())
    yield (
        f"to run: {human(total('flops'), ' FLOPs')}, {human(total('tokens'))} tokens, {human(total('stored'), 'B')} stored"
    )
    label, most = max(todo.items(), key=lambda one: one[1].memory)
    if most.memory:
        alone = (
            "" if most.cpu_seconds is not None else " (models, their training and batches; without the program itself)"
        )
        yield f"most memory: {human(most.memory, 'B')} a device, {label}{alone}"
    if (found := in_time(run, forecasts)) is not None:
        price = "" if money is None else f", money {money:,.0f}"
        cpu = f", {duration(found[1])} of processor time" if found[1] else ""
        source = "measured here" if found[1] else "by runtime.device_flops"
        yield f"time: about {duration(found[0])} on the clock ({source}){cpu}{price}"
    elif any(one.seconds is not None for one in todo.values() if one.flops):
        missing = [label for label, one in todo.items() if one.seconds is None and one.flops]
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        yield f"time: of {shown} nothing like it was measured here, so there is no sum"
    else:
        yield (
            "time: not measured here; `roundhouse plan --calibrate` runs the campaign in small to find out (a minute or two), "
            "or set runtime.device_flops"
        )
    yield (
        "Tokens are those learned from, sampled or packed; empty is none, or not known yet. Rows and lengths are those of "
        "finished stages where there are some, else the most that the recipes allow (docs/forecast.md)."
    )


def duration(seconds: float) -> str:
    """90 -> 1.5 min."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _made_cells(manifest: Manifest) -> list[str]:
    return ["", "", "", "", duration(float(manifest.record.get("seconds", 0.0))), "", human(manifest.bytes, "B"), ""]


def shorten(text: str, room: int) -> str:
    """The text, cut to `room` characters."""
    return text if len(text) <= room else text[: room - 1] + "…"


def _forecast_cells(expected: Forecast) -> list[str]:
    shown = lambda count, unit="": human(count, unit) if count else ""
    time = duration(expected.seconds) if expected.seconds is not None else ""
    money = f"{expected.money:,.2f}" if expected.money is not None else ""
    return [
        shown(expected.parameters), shown(expected.steps), shown(expected.tokens), shown(expected.flops), time,
        shown(expected.memory, "B"), shown(expected.stored, "B"), money,
    ]  # fmt: skip


def _reason(run: Run, artifact: Artifact, notes: dict[str, list[Any]]) -> str:
    made = artifact.made()
    if made is not None:
        took = float(made.manifest.record.get("seconds", 0.0))
        return f"took {took:.1f} s"
    waiting = list(dict.fromkeys(upstream.label for upstream in artifact.upstream if upstream.made() is None))
    if waiting:
        return f"waits for {', '.join(waiting)}"
    if artifact.label in notes:
        return "; ".join(differences(run, artifact, notes[artifact.label][-1])) or "its result is gone from the store"
    return "never made"


def differences(run: Run, artifact: Artifact, before: Any) -> list[str]:
    """What changed between the stage's last result in this campaign and what it would be now, one line a change."""
    manifest = run.store.manifest(before)
    if manifest is None:
        return []
    old, new = manifest.record["identity"], json.loads(json.dumps(artifact.stage.identity))
    return list(_walk("", old, new))


def _walk(place: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted({*old, *new}):
            lines += _walk(f"{place}.{key}" if place else key, old.get(key), new.get(key))
        return lines
    return [] if old == new else [f"{place}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def print_status(run: Run) -> None:
    """Where the campaign stands: done, waiting, and the versions so far."""
    done = [a for a in run.artifacts.values() if a.made() is not None]
    console.print(
        f"{run.campaign.name}-{run.digest} in {run.store.url}: {len(done)} of {len(run.artifacts)} stages done"
    )
    for artifact in run.artifacts.values():
        made = artifact.made()
        if made is None:
            point = run.store.save_points(artifact.ref).latest()
            ready = all(upstream.made() is not None for upstream in artifact.upstream)
            state = f"begun, save point {point.step}" if point else "next" if ready else "waits"
            console.print(f"  {artifact.label:<16} {state}")
    versions = ", ".join(label for label, a in run.versions.items() if a.made() is not None)
    console.print(f"versions: {versions or 'none yet'}")


def print_explanation(run: Run, label: str) -> None:
    """What names a stage's result, and what changed since the campaign last made it."""
    if label not in run.artifacts:
        raise ConfigError(f"no stage {label!r} in {run.campaign.name}; it has {', '.join(run.artifacts)}")
    artifact = run.artifacts[label]
    made = artifact.made()
    console.print(f"{label}: {artifact.ref.key} ({'in the store' if made else 'not made'})")
    console.print_json(json.dumps(artifact.stage.identity))
    record = run.record_or_none()
    earlier = [ref for ref in (record.notes().get(label, []) if record else []) if ref != artifact.ref]
    if earlier:
        console.print(f"since {earlier[-1].key}:")
        for line in differences(run, artifact, earlier[-1]) or ["its manifest is gone"]:
            console.print(f"  {line}")
    if made:
        record_of = made.manifest.record
        console.print(f"numerics: {json.dumps(record_of.get('numerics', {}))}")
        console.print(f"files: {len(made.manifest.files)}, {made.manifest.bytes:,} bytes, root {made.manifest.root}")
