"""What would run and why, where a campaign stands, and what names a stage."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.forecast import Forecast, forecast, human
from configs import ConfigError
from tasks import Artifact, Run

console = Console(highlight=False, soft_wrap=True)
OTHER_COLUMNS = 56  # characters that the plan's table needs beside the reasons


def print_plan(run: Run) -> None:
    """One line a stage: reused or to be done, with the reason; `explain` says more about one of them."""
    last = run.record_or_none()
    notes = last.notes() if last else {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("params", "tokens", "memory", "stored"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("why", no_wrap=True)
    todo, stored = 0, 0
    room = max(24, console.width - OTHER_COLUMNS)
    for artifact in run.artifacts.values():
        made, expected = artifact.made(), forecast(artifact, run.runtime)
        todo += made is None
        stored += expected.stored if expected and made is None else 0
        table.add_row(
            artifact.label,
            "reuse" if made else "[bold]run[/bold]",
            *(_forecast_cells(expected) if made is None else (["", "", "", human(made.manifest.bytes, "B")])),
            shorten(_reason(run, artifact, notes), room),
        )
    console.print(table)
    done = len(run.artifacts) - todo
    console.print(f"{len(run.artifacts)} stages: {done} reused, {todo} to run; store {run.store.url}")
    if todo:
        console.print(
            f"to be stored: about {human(stored, 'B')}. tokens: at most; memory: weights, gradients, optimizer state; both"
            " by arithmetic"
        )
    for line in run.store.warnings:
        console.print(f"note: {line}")


def shorten(text: str, room: int) -> str:
    """The text, cut to `room` characters."""
    return text if len(text) <= room else text[: room - 1] + "…"


def _forecast_cells(expected: Forecast | None) -> list[str]:
    if expected is None:
        return [""] * 4
    tokens = human(expected.tokens) if expected.tokens is not None else "by rows"
    return [human(expected.parameters), tokens, human(expected.memory, "B"), human(expected.stored, "B")]


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
