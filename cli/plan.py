"""What would run and why, where a campaign stands, and what names a stage."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.forecast import forecast, human
from configs import ConfigError
from tasks import Artifact, Run

console = Console(highlight=False, soft_wrap=True)


def print_plan(run: Run) -> None:
    """One line a stage: reused or to be done, with the reason."""
    last = run.record_or_none()
    notes = last.notes() if last else {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "work", "what", "why", "name", "params", "tokens <=", "memory >=", "stored"):
        table.add_column(column, overflow="fold")
    todo = 0
    for artifact in run.artifacts.values():
        made = artifact.made()
        todo += made is None
        what = "reuse" if made else "run"
        table.add_row(
            artifact.label,
            artifact.stage.work,
            what,
            _reason(run, artifact, notes),
            artifact.ref.digest,
            *_forecast_cells(artifact, run),
        )
    console.print(table)
    console.print(
        f"{len(run.artifacts)} stages: {len(run.artifacts) - todo} reused, {todo} to run; store {run.store.url}"
    )
    for line in run.store.warnings:
        console.print(f"note: {line}")


def _forecast_cells(artifact: Artifact, run: Run) -> list[str]:
    expected = forecast(artifact, run.runtime)
    if expected is None:
        return ["-"] * 4
    tokens = human(expected.tokens) if expected.tokens is not None else "by rows"
    return [human(expected.parameters), tokens, human(expected.memory, "B"), human(expected.stored, "B")]


def _reason(run: Run, artifact: Artifact, notes: dict[str, list[Any]]) -> str:
    made = artifact.made()
    if made is not None:
        took = float(made.manifest.record.get("seconds", 0.0))
        return f"in the store, took {took:.1f} s, {made.manifest.bytes:,} bytes"
    waiting = [upstream.label for upstream in artifact.upstream if upstream.made() is None]
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
