"""What stages cost on this device with this model, measured on the campaign itself in small (`roundhouse plan --calibrate`).

A stage's time is a fixed part and one that grows with its amount of work (FLOPs, or rows where no model is at work). Both come
from finished stages of the same kind: each has recorded the processor time between its first and its last word on progress.
What the campaign's own store has is taken first, then the calibration's, kept in .roundhouse by model and device.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cli.costs import Lengths
from cli.forecast import Forecast, forecast
from cli.kept import grown
from cli.reads import Reads, architecture_in, expected, parts_of, reads_of
from configs import Campaign, Runtime
from storage import digest, open_store
from tasks import Artifact, Run

ROOT = Path(__file__).resolve().parent.parent
CAPS = {"count": 2000, "steps": 40, "max_steps": 16, "iterations": 3, "warmup_batches": 1}  # of the campaign in small
SHORT = 2.0  # processor seconds under which a stage that told no pace is taken for its start and end alone
# Work that is done by the same code, where the first was not measured itself.
ALIKE = {"continuing": ("pretrain",), "measure": ("score", "compare", "evaluate")}
WAVES = 2  # batches of responses that a stage in small samples


@dataclass(frozen=True)
class Cost:
    """What one kind of work costs. fixed and rate: seconds, and seconds for a unit of the amount; of processor time and on
    the clock. beyond: bytes of memory that arithmetic does not know of. curve, extra: bytes kept for a step, and beside
    weights and rows; row: bytes of a row of a result without weights. lengths: prompt, response, square of its sequences."""

    fixed: float
    rate: float
    fixed_wall: float
    rate_wall: float
    beyond: float
    curve: float = 0.0
    extra: float = 0.0
    row: float = 0.0
    lengths: tuple[float, float, float] | None = None
    by_flops: bool = False  # what the rates are by; else rows, or not known
    parts: float = 1.0  # files of rows over which `extra` is spread


Costs = Mapping[str, Cost]


def kind_of(artifact: Artifact) -> str:
    """What has a cost of its own: the work, and the method where one learns."""
    recipe = artifact.stage.recipe
    return f"{artifact.stage.work}-{recipe.method}" if hasattr(recipe, "method") else artifact.stage.work


def costs_of(run: Run) -> dict[str, Cost]:
    """The costs that the finished stages of a run tell, by kind of work; the mean where there are several."""
    found: dict[str, list[Cost]] = {}
    known = typical(run)
    for artifact in run.artifacts.values():
        if (one := cost_of(artifact, run, known)) is not None:
            found.setdefault(kind_of(artifact), []).append(one)
            found[_named(artifact)] = [one]
    return {kind: _mean(costs) for kind, costs in found.items()}


def typical(run: Run) -> Lengths | None:
    """Lengths of prompts and responses for the stages that do not record their own: as sampled, else as reward models have
    read them; None where neither is finished."""
    for work in ("sample", "reward"):
        for artifact in run.artifacts.values():
            made = artifact.made() if artifact.stage.work == work else None
            if made is not None:
                return reads_of(artifact, made.summary).lengths
    return None


def _named(artifact: Artifact) -> str:
    """The key of a stage's own cost: the calibration has stages of the same names, which say more than others of their kind."""
    return f"stage {artifact.label}"


def _mean(costs: list[Cost]) -> Cost:
    costs = [one for one in costs if one.by_flops == costs[-1].by_flops]
    numbers = [name for name in asdict(costs[0]) if name not in ("lengths", "by_flops")]
    mean = {name: sum(getattr(c, name) for c in costs) / len(costs) for name in numbers}
    return replace(costs[-1], **mean)


def cost_of(artifact: Artifact, run: Run, known: Lengths | None = None) -> Cost | None:
    """What one finished stage tells; None where it is not finished or was measured under other numerics.

    known: lengths of responses, for a stage that does not record its own.
    """
    made = artifact.made()
    if made is None or made.manifest.record.get("numerics") != run.runtime.numerics():
        return None
    record = made.manifest.record
    reads = reads_of(artifact, made.summary, known)
    found = forecast(artifact, run.runtime, reads)
    cpu, wall = float(record["cpu_seconds"]), float(record["seconds"])
    if pace := record.get("pace"):
        seen = (found.amount - found.opening) * pace["done"] / pace["of"]
        rate, rate_wall = pace["cpu_seconds"] / seen, pace["seconds"] / seen
    elif cpu < SHORT:
        rate = rate_wall = 0.0
    else:
        rate, rate_wall = cpu / found.amount, wall / found.amount
    curve, extra, row = _bytes(artifact, run, found)
    return Cost(
        max(0.0, cpu - rate * found.amount), rate, max(0.0, wall - rate_wall * found.amount), rate_wall,
        float(record["peak_bytes"]) - found.memory, curve, extra, row,
        (reads.lengths.prompt, reads.lengths.response, reads.lengths.square), found.flops > 0,
        parts_of(artifact),
    )  # fmt: skip


def _bytes(artifact: Artifact, run: Run, found: Forecast) -> tuple[float, float, float]:
    """Bytes for a step of the curve, beside what arithmetic knows and what grows, and for a row."""
    made = artifact.made()
    assert made is not None
    kept, known = grown(made.manifest, run.store), _counted(artifact, found)
    if artifact.stage.kind in ("model", "reward"):  # the last rollouts beside an online policy are as many as before
        return kept.curve / max(1, found.steps), kept.fixed + kept.rows - known, 0.0
    return 0.0, kept.fixed + kept.curve - known, kept.rows / max(1, found.rows)


def _counted(artifact: Artifact, found: Forecast) -> int:
    """Bytes by arithmetic: of weights and token ids; those of rows are measured whole."""
    return found.stored if artifact.stage.kind in ("model", "reward", "corpus") else 0


def _cost_for(artifact: Artifact, costs: Costs) -> Cost | None:
    """The cost of the stage of this name, else of its kind of work, else of work that is like it."""
    work = artifact.stage.work
    if (own := costs.get(_named(artifact)) or costs.get(kind_of(artifact))) is not None:
        return own
    found = next((c for name in ALIKE.get(work, ()) if (c := costs.get(name)) is not None and c.by_flops), None)
    if found is not None:
        return found if artifact.stage.kind == "model" else replace(found, extra=0.0, row=0.0)
    return next((c for k, c in costs.items() if k.split("-")[0] == work), None)


def estimate(artifact: Artifact, runtime: Runtime, costs: Costs, reads: Reads | None = None) -> Forecast:
    """The stage's forecast with time, memory and bytes as measured, as far as its kind of work was."""
    cost = _cost_for(artifact, costs)
    if reads is None and cost is not None and cost.lengths is not None:
        reads = expected(artifact, Lengths(*cost.lengths))
    found = forecast(artifact, runtime, reads)
    if cost is None:
        return _by_device(found, runtime)
    stored = _counted(artifact, found) + cost.curve * found.steps + cost.extra * parts_of(artifact) / cost.parts
    stored += cost.row * found.rows
    seconds = cost.fixed_wall + cost.rate_wall * found.amount
    return replace(
        found,
        memory=round(found.memory + cost.beyond),
        stored=round(stored),
        cpu_seconds=cost.fixed + cost.rate * found.amount,
        seconds=seconds,
        money=_money(seconds, runtime),
    )


def _by_device(found: Forecast, runtime: Runtime) -> Forecast:
    """Time by the FLOP/s that the runtime says its devices sustain."""
    if not runtime.device_flops or not found.flops:
        return found
    seconds = found.flops / (runtime.device_flops * runtime.processes)
    return replace(found, seconds=seconds, money=_money(seconds, runtime))


def _money(seconds: float, runtime: Runtime) -> float | None:
    return seconds / 3600 * runtime.processes * runtime.device_price if runtime.device_price else None


def path_of(run: Run) -> Path:
    """Where the calibration of this run's model on this device is kept."""
    base = run.campaign.base
    architecture = dict(architecture_in(base.pretrain or base.adopt) or {})
    name = digest({"model": architecture, "host": platform.node(), "numerics": run.runtime.numerics()})
    return ROOT / ".roundhouse" / "calibration" / f"{name}.json"


def known_costs(run: Run, told: Sequence[Run] = ()) -> dict[str, Cost]:
    """What was measured: by the calibration, and instead of that by finished stages of `told`, and of the run itself."""
    path = path_of(run)
    kept = read_costs(json.loads(path.read_text())["costs"]) if path.exists() else {}
    for one in (*told, run):
        kept |= costs_of(one)
    return kept


def read_costs(kept: Mapping[str, Any]) -> dict[str, Cost]:
    """Costs from their JSON."""
    return {k: Cost(**{**one, "lengths": tuple(one["lengths"]) if one["lengths"] else None}) for k, one in kept.items()}


def calibrate(run: Run, store: Path | None = None, path: Path | None = None) -> Path:
    """Run the campaign in small, one stage after another, and keep what its stages cost; returns where."""
    from flows.rounds import align

    path = path or path_of(run)
    small = in_small(run.campaign, run.runtime)
    runtime = run.runtime.model_copy(update={"save_steps": 0, "save_seconds": 3600.0})
    place = store or path.with_suffix(".store")
    done = Run(small, open_store(place), runtime, mode="direct")
    align(done)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"config": run.campaign.name, "host": platform.node(),
            "costs": {kind: asdict(cost) for kind, cost in sorted(costs_of(done).items())}}  # fmt: skip
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def in_small(campaign: Campaign, runtime: Runtime) -> Campaign:
    """The campaign with little of everything: its model, batch sizes and limits, few rows, steps and rounds."""
    most = WAVES * runtime.sample_rows
    raw = _capped(campaign.model_dump(mode="json"))
    raw["rounds"] = _first_of_each(raw["rounds"])
    for section in (raw, *raw["rounds"]):
        for name, size in (("annotate", 1.5), ("evaluate", 1.0), ("sample", 0.0), ("probe", 0.0)):
            recipe = section.get(name)
            if isinstance(recipe, dict):
                rows = most * size or (most if name == "sample" else runtime.sample_rows) / recipe["k"]
                recipe["prompts"] = min(recipe["prompts"], max(8, math.ceil(rows)))
                if name == "probe":  # a whole batch at each: half a batch takes nearly as long
                    recipe["temperatures"] = recipe["temperatures"][:2]
        for name in ("sft", "train"):
            if isinstance(section.get(name), dict):
                section[name]["max_steps"] = section[name]["max_steps"] or CAPS["max_steps"]
    raw["certify"]["on_failure"] = "record"
    return Campaign.model_validate(raw)


def _capped(value: Any) -> Any:
    """The same with every count at most its cap."""
    if isinstance(value, dict):
        return {k: min(v, CAPS[k]) if k in CAPS and isinstance(v, int) and v else _capped(v) for k, v in value.items()}
    return [_capped(one) for one in value] if isinstance(value, list) else value


def _first_of_each(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first round of each method."""
    firsts: dict[str, dict[str, Any]] = {}
    for entry in rounds:
        firsts.setdefault(str(entry["method"]), entry)
    return list(firsts.values())


def in_time(run: Run, forecasts: Mapping[str, Forecast]) -> tuple[float, float] | None:
    """Seconds on the clock and processor seconds of what is still to run: the longest chain, or all of it over the slots.

    Stages without a model count as nothing where their time is not known; None where that of a model is not.
    """
    ends: dict[str, float] = {}
    total = cpu = 0.0
    for artifact in run.artifacts.values():
        found = forecasts[artifact.label]
        todo = artifact.made() is None
        if todo and found.seconds is None and found.flops:
            return None
        seconds = (found.seconds or 0.0) if todo else 0.0
        total, cpu = total + seconds, cpu + ((found.cpu_seconds or 0.0) if todo else 0.0)
        ends[artifact.label] = seconds + max((ends[a.label] for a in artifact.upstream if a.label in ends), default=0.0)
    return max(max(ends.values(), default=0.0), total / run.runtime.slots), cpu


def money_of(forecasts: Iterable[Forecast]) -> float | None:
    """All of it; None where no price is known."""
    found = [one.money for one in forecasts if one.money is not None]
    return sum(found) if found else None
