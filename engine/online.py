"""The online loop: the policy answers, frozen models judge, the method turns scores into a signal, policy and critic learn.

A step is one batch of rollouts: of the critic's warm-up while that lasts (the policy stays), then of an iteration. What a
step does depends on its number, the weights and the counted state, all of which lie in the save point: a resumed run ends with
the same bytes as one that was never interrupted.

Source: METHODS 4 to 6 (Llama 2, PPO-max) for the loop; what a method does with scores is in its own file.
"""

import math
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import adapters, checkpoint, drawing
from engine.errors import NotFinite, StageError
from engine.evidence import metrics, rollouts, scored_rows, unanswered, write_alarm, write_bad
from engine.job import Job
from engine.ladder import Anchors, adjust, next_rung, raised, trainers
from engine.models import save_model
from engine.participants import Run, open_run
from engine.rollouts import Judge, Rolled, roll
from engine.tripwires import Alarm, check, lost, start_of, violations
from engine.updates import Totals, fit_critic, improve
from storage.rows import write_rows


@dataclass
class Progress:
    """What a run counts; with the weights and moments it is the whole state."""

    step: int = 0  # batches of rollouts so far
    iteration: int = 0  # of them, iterations of the method
    warming: bool = False  # the critic's warm-up goes on
    tokens: int = 0  # sampled in iterations
    anchor: int = 0  # iteration of the anchor weights
    since: int = 0  # batches before the run last went back to its anchor
    stopped: bool = False  # by an alarm
    state: dict[str, float] = field(default_factory=dict)  # the method's: running statistics, KL coefficient
    alarms: list[Alarm] = field(default_factory=list)  # the first of each rule since the run last went back
    rungs: list[dict[str, Any]] = field(default_factory=list)  # what alarms led to, in order
    sums: dict[str, float] = field(default_factory=dict)  # of the policy's weights at the start


def run(job: Job, judge: Judge | None = None) -> dict[str, Any]:
    """Train the policy online and write its folder, and the last rollouts.

    judge: scores responses instead of the reward models among the inputs; for experiments.

    Raises:
        StageError: an offline method, no prompt that fits, log-probs that drift, numbers that are not finite where alarms
            are only recorded (the rollouts are then beside the result, the message says where), or a policy that did not move.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _run(job, judge, Path(scratch))


def _run(job: Job, judge: Judge | None, scratch: Path) -> dict[str, Any]:
    r = open_run(job, judge)
    progress = Progress(
        warming=r.learner.critic is not None and r.recipe.warmup_batches > 0,
        state=dict(r.method.initial_state(r.config)),
        sums=checkpoint.sums(r.models.policy),
    )
    if r.recipe.tripwires.on_alarm != "record":
        r.anchors = Anchors(scratch, r.learner, _counted(progress))
    _restore(r, progress)
    began, first, rolled = time.monotonic(), progress.step, None
    while progress.iteration < r.recipe.iterations and not progress.stopped:
        rolled = _step(r, progress)
        job.progress(progress.iteration, r.recipe.iterations, "iteration")
        more = progress.iteration < r.recipe.iterations and not progress.stopped
        if r.learner.policy.agree(more and job.should_save(progress.step)):
            for trainer in trainers(r.learner).values():
                trainer.collect()
            if r.learner.policy.main:
                job.save(progress.step, lambda folder: _write(r, progress, folder))
    seconds = time.monotonic() - began
    job.timing("steps", seconds)
    job.log(f"{progress.step - first} batches of rollouts in {seconds:.1f} s")
    return _publish(r, progress, rolled)


def _step(r: Run, progress: Progress) -> Rolled | None:
    """One batch of rollouts and what is learned from it; ends the warm-up when the critic is good enough already.

    Returns the rollouts; None where the policy could not be sampled any more.
    """
    recipe, number = r.recipe, progress.step + 1
    for trainer in trainers(r.learner).values():
        trainer.refresh()
    try:
        rolled = _roll(r, number)
    except NotFinite as error:
        if r.learner.policy.updates == 0:  # it came so: a fault and no collapse
            raise
        problem = _collapse(r, error, None, number)
        _watch(r, progress, {"policy_steps": float(r.learner.policy.updates), "warmup": 0.0}, None, problem=problem)
        return None
    signal, state, measured = r.method.signal(rolled.rollout, r.learner.config, progress.state)
    totals = Totals()
    totals.add(measured)
    row = {**totals.means(), **metrics(rolled), "policy_steps": float(r.learner.policy.updates)}
    if progress.warming:
        tried = number - progress.since
        enough = row["explained_variance"] > recipe.warmup_target or tried > recipe.warmup_batches
        progress.warming = not enough
    row["warmup"] = float(progress.warming)
    due = not progress.warming and progress.iteration % recipe.tripwires.anchor == 0
    if r.anchors and due:  # the weights that made this batch's rollouts: the rollouts judge them, not the next ones
        r.anchors.propose(r.learner, _counted(progress))
    problem = ""
    try:
        if progress.warming:  # the method's state stays: statistics and controllers belong to a policy that learns
            row |= fit_critic(r.learner, rolled, signal, number)
        else:
            share = progress.iteration / max(1, recipe.iterations - 1)
            row |= improve(r.learner, rolled, signal, number, share)
            _check_weights(r)
            progress.state, progress.iteration = dict(state), progress.iteration + 1
            progress.tokens += int(rolled.rollout.mask.sum())
        bad = sorted(name for name, value in row.items() if not math.isfinite(value))
        if bad:
            raise NotFinite(f"{', '.join(bad)} not finite at iteration {progress.iteration}")
    except StageError as error:
        problem = _collapse(r, error, rolled, number)
    _watch(r, progress, row, rolled, due=due, problem=problem)
    return rolled


def _roll(r: Run, number: int) -> Rolled:
    greedy = getattr(r.method, "baseline", "") == "greedy"
    return roll(r.models, r.prompts, r.recipe, r.job.runtime, number, greedy=greedy, team=r.learner.policy)


def _check_weights(r: Run) -> None:
    """Raise NotFinite where the last step left a weight that no later one and no sampler can use."""
    r.learner.policy.refresh()
    bad = [name for name, total in checkpoint.sums(r.models.policy).items() if not math.isfinite(total)]
    if bad:
        raise NotFinite(f"weights of the policy are not finite after a step: {bad[0]} ({len(bad)} in all)")


def _collapse(r: Run, error: StageError, rolled: Rolled | None, number: int) -> str:
    """What went wrong, as the text of an alarm.

    Raises:
        StageError: it is none (alarms are only recorded, or it is a fault); says where the rollouts are.
    """
    if r.anchors is not None and isinstance(error, NotFinite):
        return str(error)
    place = write_bad(r.job.out, _evidence(r, rolled, number), number)
    raise StageError(f"{error}; the rollouts are in {place}") from None


def _evidence(r: Run, rolled: Rolled | None, number: int) -> list[dict[str, Any]]:
    """The rollouts of a batch; of one that could not be sampled what was asked."""
    if rolled is not None:
        return rollouts(rolled)
    batch = r.prompts.batch(number, r.recipe.batch_size // r.recipe.k, r.recipe.seed)
    return [unanswered(r.prompts.rows[i], r.prompts.ids[i]) for i in batch for _ in range(r.recipe.k)]


def _watch(
    r: Run, progress: Progress, row: dict[str, float], rolled: Rolled | None, *, due: bool = False, problem: str = ""
) -> None:
    """Add the row to the curve and judge it: note alarms and act on them, or accept the anchor that was proposed if one
    was due.

    problem: why the row is not finite; empty where it is.
    """
    if problem:
        kept = {name: value for name, value in row.items() if math.isfinite(value)}
        row = {**kept, "nonfinite": float(max(1, len(row) - len(kept)))}
    progress.step += 1
    r.job.metrics(progress.step, {**row, "iteration": float(progress.iteration)})
    rules, rows = r.recipe.tripwires, r.job.rows
    known = {alarm.rule for alarm in progress.alarms if alarm.step > progress.since}
    found = [lost(progress.step, 1, problem)] if problem else check(rows, rules, progress.since)
    for alarm in found:
        if alarm.rule not in known:
            progress.alarms.append(alarm)
            r.job.log(f"alarm at batch {alarm.step}: {alarm.rule}: {alarm.text}")
    if r.anchors is None:
        return
    if found:
        _act(r, progress, _evidence(r, rolled, progress.step), found)
    elif due and not violations(rows[-1], start_of(rows), rules):
        progress.anchor = progress.iteration - 1
        r.anchors.accept()


def _act(r: Run, progress: Progress, evidence: list[dict[str, Any]], alarms: list[Alarm]) -> None:
    """Keep the evidence, then end the run or go back to the anchor and go on under what the next rung changes."""
    assert r.anchors is not None
    taken = [rung["rung"] for rung in progress.rungs]
    rung = next_rung(r.recipe.tripwires, taken)
    write_alarm(r.job.out, evidence, progress.step, [asdict(alarm) for alarm in alarms])
    reached, progress.stopped = progress.iteration, rung == "stop"
    if rung == "previous_version":
        r.anchors.rewind()
        progress.anchor = 0
    if not progress.stopped:
        counted = r.anchors.restore(r.learner)
        progress.iteration, progress.warming = counted["iteration"], counted["warming"]
        progress.state, progress.since = counted["state"], progress.step
        r.learner = adjust(r.learner, r.config, [*taken, rung])
        if "raise_kl" in (*taken, rung) and "kl_coef" in progress.state and not counted["raised"]:
            progress.state["kl_coef"] = raised(progress.state["kl_coef"], r.recipe.tripwires)
    entry = {
        "rung": rung,
        "step": progress.step,
        "rules": [alarm.rule for alarm in alarms],
        "iteration": reached,
        "back_to": progress.anchor,
        "learning_rate": r.learner.policy.schedule.recipe.learning_rate,
        "kl_coef": progress.state.get("kl_coef", getattr(r.learner.config, "kl_coef", None)),
    }
    progress.rungs.append(entry)
    now = {"learning rate": entry["learning_rate"], "KL coefficient": entry["kl_coef"]}
    told = ", ".join(f"{name} {value:g}" for name, value in now.items() if value is not None)
    r.job.log(
        f"ladder: {rung} after {', '.join(entry['rules'])}: from iteration {reached} back to {progress.anchor}; {told}"
    )


def _counted(progress: Progress) -> dict[str, Any]:
    """What an anchor holds besides weights and moments."""
    return {
        "iteration": progress.iteration,
        "warming": progress.warming,
        "state": dict(progress.state),
        "raised": any(rung["rung"] == "raise_kl" for rung in progress.rungs),
    }


def _write(r: Run, progress: Progress, folder: Path) -> dict[str, Any]:
    checkpoint.save_random(folder / "random.safetensors")
    if r.anchors:
        r.anchors.save(folder)
    for file in r.job.out.glob("alarm-*.json"):
        shutil.copyfile(file, folder / file.name)
    saved = {name: trainer.save(folder, name) for name, trainer in trainers(r.learner).items()}
    return {"progress": asdict(progress), **saved}


def _restore(r: Run, progress: Progress) -> None:
    """Go on from the last save point, if there is one."""
    point = r.job.resume()
    if point is None:
        return
    for name, trainer in trainers(r.learner).items():
        trainer.restore(point.path, point.record[name], name)
    if r.anchors:
        r.anchors.load(point.path)
    for file in point.path.glob("alarm-*.json"):
        shutil.copyfile(file, r.job.out / file.name)
    checkpoint.restore_random(point.path / "random.safetensors")
    for name, value in point.record["progress"].items():
        setattr(progress, name, [Alarm(**alarm) for alarm in value] if name == "alarms" else value)
    r.learner = adjust(r.learner, r.config, [rung["rung"] for rung in progress.rungs])


def _greedy(r: Run) -> int:
    """Responses beside the rollouts that a batch samples."""
    return r.recipe.batch_size // r.recipe.k if getattr(r.method, "baseline", "") == "greedy" else 0


def _publish(r: Run, progress: Progress, rolled: Rolled | None) -> dict[str, Any]:
    """Write the policy (after an alarm that stops: the anchor) and the last rollouts; returns the summary."""
    job, learner = r.job, r.learner
    planned = progress.iteration * r.recipe.epochs * (r.recipe.batch_size // r.recipe.minibatch_size)
    done = learner.policy.updates
    if progress.stopped:
        assert r.anchors is not None
        r.anchors.restore(learner)
    elif done != planned:
        raise StageError(f"{done} optimizer steps were done, {planned} were planned")
    learner.policy.refresh()
    if not progress.stopped and checkpoint.sums(r.models.policy) == progress.sums:
        raise StageError("training did not move any weight of the policy: is the learning rate 0?")
    if rolled is None:  # the last batch could not be sampled; by the policy that is published it can
        rolled = _roll(r, progress.step)
    save_model(adapters.merged(learner.policy.gather()), r.chat, job.out, "policy", r.recipe.dtype)
    policy = f"{drawing.fingerprint(job.folder('policy'))}-{progress.iteration - 1}"
    rows = scored_rows(rolled, r.chat, r.recipe, policy, r.judges, f"online-{progress.iteration}")
    write_rows(job.out / "rollouts-last.parquet", "Scored", rows)
    whole = [row for row in job.rows if "nonfinite" not in row]
    tail = ([row for row in whole if not row["warmup"]] or whole or job.rows)[-max(1, r.recipe.iterations // 10) :]
    mean = lambda name: sum(row[name] for row in tail) / len(tail)
    return {
        "iterations": progress.iteration,
        "policy_steps": done,
        "critic_steps": 0 if learner.critic is None else learner.critic.updates,
        "warmup_batches": int(sum(row["warmup"] for row in job.rows)),
        "rollouts": progress.step * r.recipe.batch_size,
        "sampled": progress.step * (r.recipe.batch_size + _greedy(r)),
        "tokens": progress.tokens,
        "prompts": {"read": len(r.prompts.rows) + r.dropped, "dropped_long_prompt": r.dropped},
        "score_first": job.rows[0]["score"],
        "score": mean("score"),
        "kl": mean("kl"),
        "response_length": mean("response_length"),
        "state": progress.state,
        "alarms": [asdict(alarm) for alarm in progress.alarms],
        "ladder": progress.rungs,
        "stopped": progress.stopped,
        "published_iteration": progress.anchor if progress.stopped else progress.iteration,
    }
