"""The online loop: the policy answers, frozen models judge, the method turns scores into a signal, policy and critic learn.

A step is one batch of rollouts: of the critic's warm-up while that lasts (the policy stays), then of an iteration. What a
step does depends on its number, the weights and the counted state, all of which lie in the save point: a resumed run ends with
the same bytes as one that was never interrupted.

Source: METHODS 4 to 6 (Llama 2, PPO-max) for the loop; what a method does with scores is in its own file.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import methods
from configs.recipes import Online
from engine import checkpoint, drawing
from engine.errors import StageError
from engine.evidence import metrics, scored_rows, write_bad
from engine.examples import Item, Reader
from engine.job import Job
from engine.models import critic_from_reward, freeze, load_policy, save_model
from engine.packing import shape_of
from engine.rollouts import Judge, Models, Prompts, Rolled, judge_of, roll
from engine.scoring import load_scorers, names
from engine.sharding import Plain
from engine.template import Chat, load_chat
from engine.tripwires import Alarm, check, start_of, violations
from engine.updates import Learner, Totals, fit_critic, improve
from storage.rows import read_rows, write_rows


@dataclass
class Progress:
    """What a run counts; with the weights and moments it is the whole state."""

    step: int = 0  # batches of rollouts so far
    iteration: int = 0  # of them, iterations of the method
    warming: bool = False  # the critic's warm-up goes on
    tokens: int = 0  # sampled in iterations
    anchor: int = 0  # iteration of the anchor weights
    stopped: bool = False  # by an alarm
    state: dict[str, float] = field(default_factory=dict)  # the method's: running statistics, KL coefficient
    alarms: list[Alarm] = field(default_factory=list)  # the first of each rule
    sums: dict[str, float] = field(default_factory=dict)  # of the policy's weights at the start


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that takes part."""

    job: Job
    recipe: Online
    method: ModuleType
    config: Any  # the method's Config
    chat: Chat
    models: Models
    prompts: Prompts
    dropped: int  # prompts that do not fit
    learner: Learner
    judges: str  # names of the reward models
    anchor: dict[str, Tensor]  # the last weights at which no rule held; empty unless an alarm stops the run


def run(job: Job, judge: Judge | None = None) -> dict[str, Any]:
    """Train the policy online and write its folder, and the last rollouts.

    judge: scores responses instead of the reward models among the inputs; for experiments.

    Raises:
        StageError: an offline method, no prompt that fits, log-probs that drift, numbers that are not finite (the rollouts
            are then in _beside/bad-rollouts.json), or a policy that did not move.
    """
    r = _open(job, judge)
    progress = Progress(
        warming=r.learner.critic is not None and r.recipe.warmup_batches > 0,
        state=dict(r.method.initial_state(r.config)),
        sums=checkpoint.sums(r.models.policy),
    )
    _restore(r, progress)
    began, first, rolled = time.monotonic(), progress.step, None
    while progress.iteration < r.recipe.iterations and not progress.stopped:
        rolled = _step(r, progress)
        job.progress(progress.iteration, r.recipe.iterations, "iteration")
        more = progress.iteration < r.recipe.iterations and not progress.stopped
        if more and job.should_save(progress.step):
            job.save(progress.step, lambda folder: _write(r, progress, folder))
    seconds = time.monotonic() - began
    job.timing("steps", seconds)
    job.log(f"{progress.step - first} batches of rollouts in {seconds:.1f} s")
    assert rolled is not None, "no save point is made after the last iteration"
    return _publish(r, progress, rolled)


def settings(recipe: Online) -> tuple[ModuleType, Any]:
    """The method and its Config: the preset's fields, then the recipe's own.

    Raises:
        StageError: a method of the other loop. ValueError: an unknown preset or a bad value.
    """
    method = methods.load(recipe.method)
    if method.loop != "online":
        raise StageError(f"method {recipe.method} learns from rows: it belongs to the train stage")
    presets = getattr(method, "PRESETS", {})
    if recipe.preset is not None and recipe.preset not in presets:
        raise StageError(f"method {recipe.method} has no preset {recipe.preset}; it has {', '.join(presets) or 'none'}")
    return method, method.Config(**{**presets.get(recipe.preset, {}), **recipe.config})


def _open(job: Job, judge: Judge | None) -> Run:
    recipe: Online = job.recipe
    method, config = settings(recipe)
    start = job.folder("policy")
    chat = load_chat(start)
    if hasattr(method, "check"):
        method.check(config, len(chat.tokenizer))
    rows, dropped = drawing.fit(
        chat, read_rows(job.folder("prompts") / "rows.parquet", "Prompt"), recipe.limits.prompt_tokens, job.out
    )
    if not rows:
        raise StageError(f"no prompt fits limits.prompt_tokens {recipe.limits.prompt_tokens} ({dropped} are longer)")
    folders = job.folders("rewards")
    scorers = load_scorers(folders, job.runtime, chat.fingerprint) if judge is None else []
    if judge is None and not scorers:
        raise StageError("online needs a reward model: give rewards")
    policy, critic = load_policy(start, job.runtime), None
    steps = recipe.iterations * recipe.epochs * (recipe.batch_size // recipe.minibatch_size)
    if "value" in method.forwards:
        found = [job.folder("critic_start")] if "critic_start" in job.inputs else folders
        if not found:
            raise StageError(f"method {recipe.method} needs a critic: give rewards or critic_start")
        model = critic_from_reward(found[0], job.runtime)
        if recipe.critic_head == "zero":
            torch.nn.init.zeros_(model.score.weight)
        critic = Plain(model, recipe.critic_optimizer, steps + recipe.warmup_batches * recipe.warmup_steps)
    models = Models(
        policy=policy,
        reference=freeze(load_policy(job.folder("reference") if "reference" in job.inputs else start, job.runtime)),
        critic=None if critic is None else critic.model,
        judge=judge or judge_of(scorers),
        chat=chat,
    )
    for scorer in scorers:
        freeze(scorer.model)
    learner = Learner(method, config, recipe, job.runtime, Plain(policy, recipe.optimizer, steps), critic, chat.pad_id,
                      shape_of(policy), _examples(job, recipe, chat))  # fmt: skip
    anchor = (
        {n: p.detach().clone() for n, p in policy.named_parameters()} if recipe.tripwires.on_alarm == "stop" else {}
    )
    prompts = Prompts([row for row, _ in rows], [ids for _, ids in rows])
    return Run(job, recipe, method, config, chat, models, prompts, dropped, learner, names(scorers), anchor)


def _examples(job: Job, recipe: Online, chat: Chat) -> list[Item]:
    if recipe.ptx_weight == 0:
        return []
    sft = methods.load("sft")
    reader = Reader(chat, recipe.limits, sft, sft.Config())
    items = [
        item
        for folder in job.folders("examples")
        for item in reader.read(read_rows(folder / "rows.parquet", "Example"))
    ]
    if not items:
        raise StageError(f"online.ptx_weight {recipe.ptx_weight} needs examples that fit the limits; there are none")
    return items


def _step(r: Run, progress: Progress) -> Rolled:
    """One batch of rollouts and what is learned from it. Ends the warm-up when the critic is good enough already."""
    recipe, number = r.recipe, progress.step + 1
    rolled = roll(
        r.models, r.prompts, recipe, r.job.runtime, number, greedy=getattr(r.method, "baseline", "") == "greedy"
    )
    signal, state, measured = r.method.signal(rolled.rollout, r.config, progress.state)
    before = _anchor_candidate(r, progress)
    totals = Totals()
    totals.add(measured)
    row = {**totals.means(), **metrics(rolled), "policy_steps": float(r.learner.policy.updates)}
    if progress.warming:
        enough = row["explained_variance"] > recipe.warmup_target or number > recipe.warmup_batches
        progress.warming = not enough
    row["warmup"] = float(progress.warming)
    try:
        if progress.warming:  # the method's state stays: statistics and controllers belong to a policy that learns
            row |= fit_critic(r.learner, rolled, signal, number)
        else:
            share = progress.iteration / max(1, recipe.iterations - 1)
            row |= improve(r.learner, rolled, signal, number, share)
            progress.state, progress.iteration = dict(state), progress.iteration + 1
            progress.tokens += int(rolled.rollout.mask.sum())
        bad = sorted(name for name, value in row.items() if not math.isfinite(value))
        if bad:
            raise StageError(f"{', '.join(bad)} not finite at iteration {progress.iteration}")
    except StageError as error:
        raise StageError(f"{error}; the rollouts are in {write_bad(r.job.out, rolled, number)}") from None
    progress.step = number
    row["iteration"] = float(progress.iteration)
    r.job.metrics(number, row)
    _watch(r, progress, before)
    return rolled


def _anchor_candidate(r: Run, progress: Progress) -> dict[str, Tensor]:
    """The weights that made this batch's rollouts, where an anchor is due: the rollouts judge them, not the next ones."""
    due = bool(r.anchor) and not progress.warming and progress.iteration % r.recipe.tripwires.anchor == 0
    return {n: p.detach().clone() for n, p in r.models.policy.named_parameters()} if due else {}


def _watch(r: Run, progress: Progress, before: dict[str, Tensor]) -> None:
    """Judge the last row of the curve: note alarms, stop or move the anchor to the weights `before` this row's updates."""
    rules, rows = r.recipe.tripwires, r.job.rows
    known = {alarm.rule for alarm in progress.alarms}
    for alarm in check(rows, rules):
        progress.stopped |= rules.on_alarm == "stop"
        if alarm.rule not in known:
            progress.alarms.append(alarm)
            r.job.log(f"alarm at batch {alarm.step}: {alarm.rule}: {alarm.text}")
    if before and not progress.stopped and not violations(rows[-1], start_of(rows), rules):
        progress.anchor = progress.iteration - 1
        r.anchor.update(before)


def _write(r: Run, progress: Progress, folder: Path) -> dict[str, Any]:
    checkpoint.save_random(folder / "random.safetensors")
    if r.anchor:
        checkpoint.write_tensors(folder / "anchor.safetensors", r.anchor)
    record = {"progress": asdict(progress), "policy": r.learner.policy.save(folder, "policy")}
    if r.learner.critic is not None:
        record["critic"] = r.learner.critic.save(folder, "critic")
    return record


def _restore(r: Run, progress: Progress) -> None:
    """Go on from the last save point, if there is one."""
    point = r.job.resume()
    if point is None:
        return
    r.learner.policy.restore(point.path, point.record["policy"], "policy")
    if r.learner.critic is not None:
        r.learner.critic.restore(point.path, point.record["critic"], "critic")
    if r.anchor:
        checkpoint.read_into(point.path / "anchor.safetensors", r.anchor)
    checkpoint.restore_random(point.path / "random.safetensors")
    for name, value in point.record["progress"].items():
        setattr(progress, name, [Alarm(**alarm) for alarm in value] if name == "alarms" else value)


def _publish(r: Run, progress: Progress, rolled: Rolled) -> dict[str, Any]:
    """Write the policy (after an alarm that stops: the anchor) and the last rollouts; returns the summary."""
    job, learner = r.job, r.learner
    planned = progress.iteration * r.recipe.epochs * (r.recipe.batch_size // r.recipe.minibatch_size)
    if learner.policy.updates != planned:
        raise StageError(f"{learner.policy.updates} optimizer steps were done, {planned} were planned")
    if checkpoint.sums(r.models.policy) == progress.sums:
        raise StageError("training did not move any weight of the policy: is the learning rate 0?")
    if progress.stopped:
        with torch.no_grad():
            for name, parameter in r.models.policy.named_parameters():
                parameter.copy_(r.anchor[name])
    save_model(learner.policy.gather(), r.chat, job.out, "policy", r.recipe.dtype)
    policy = f"{drawing.fingerprint(job.folder('policy'))}-{progress.iteration - 1}"
    rows = scored_rows(rolled, r.chat, r.recipe, policy, r.judges, f"online-{progress.iteration}")
    write_rows(job.out / "rollouts-last.parquet", "Scored", rows)
    tail = [row for row in job.rows if not row["warmup"]][-max(1, r.recipe.iterations // 10) :]
    mean = lambda name: sum(row[name] for row in tail) / len(tail)
    return {
        "iterations": progress.iteration,
        "policy_steps": learner.policy.updates,
        "critic_steps": 0 if learner.critic is None else learner.critic.updates,
        "warmup_batches": progress.step - progress.iteration,
        "rollouts": progress.step * r.recipe.batch_size,
        "tokens": progress.tokens,
        "prompts": {"read": len(r.prompts.rows) + r.dropped, "dropped_long_prompt": r.dropped},
        "score_first": job.rows[0]["score"],
        "score": mean("score"),
        "kl": mean("kl"),
        "response_length": mean("response_length"),
        "state": progress.state,
        "alarms": [asdict(alarm) for alarm in progress.alarms],
        "stopped": progress.stopped,
        "published_iteration": progress.anchor if progress.stopped else progress.iteration,
    }
