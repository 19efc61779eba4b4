"""Who and what takes part in an online run, put together from the inputs of its job."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import methods
from configs.recipes import Online
from configs.runtime import Runtime
from engine import adapters, drawing
from engine.errors import StageError
from engine.examples import Item, Reader
from engine.job import Job
from engine.ladder import Anchors, check_ladder
from engine.models import critic_from_reward, freeze, load_policy, reward_from_policy
from engine.packing import shape_for
from engine.rollouts import Judge, Models, Prompts, judge_of
from engine.scoring import load_scorers, names
from engine.sharding import trainer_for
from engine.spool import Spool
from engine.template import CARD, Chat, load_chat
from engine.updates import Learner
from methods import sft
from storage.rows import read_rows


@dataclass(eq=False)
class Run:
    """Everything that takes part."""

    job: Job
    recipe: Online
    method: ModuleType
    config: Any  # the method's Config; the learner's is the one in force
    chat: Chat
    models: Models
    prompts: Prompts
    dropped: int  # prompts that do not fit
    learner: Learner
    judges: str  # names of the reward models
    anchors: Anchors | None = None  # unless alarms are only recorded


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


def open_run(job: Job, judge: Judge | None) -> Run:
    """Load the models and the prompts, and check that they go together (for the errors see `online.run`)."""
    recipe: Online = job.recipe
    method, config = settings(recipe)
    start = job.folder("policy")
    chat = load_chat(start)
    check_ladder(recipe.tripwires, recipe.method, config)
    if hasattr(method, "check"):
        method.check(config, len(chat.tokenizer))
    rows, dropped = drawing.fit(
        chat, read_rows(job.folder("prompts") / "rows.parquet", "Prompt"), recipe.limits.prompt_tokens, job.out
    )
    if not rows:
        raise StageError(f"no prompt fits limits.prompt_tokens {recipe.limits.prompt_tokens} ({dropped} are longer)")
    folders = job.folders("rewards")
    rest = job.runtime.model_copy(update={"device": "cpu"}) if job.runtime.offload else job.runtime
    scorers = load_scorers(folders, rest, chat.fingerprint) if judge is None else []
    if judge is None and not scorers:
        raise StageError("online needs a reward model: give rewards")
    begun, critic = adapters.add(load_policy(start, job.runtime), recipe.lora, recipe.seed), None
    reference, shape = _reference(job, begun, start, rest), shape_for([begun])
    steps = recipe.iterations * recipe.epochs * (recipe.batch_size // recipe.minibatch_size)
    if "value" in method.forwards:
        found = [job.folder("critic_start")] if "critic_start" in job.inputs else folders
        if not found:
            raise StageError(f"method {recipe.method} needs a critic: give rewards or critic_start")
        model = _critic(found[0], start, chat, job)
        if recipe.critic_head == "zero":
            torch.nn.init.zeros_(model.score.weight)
        model = adapters.add(model, recipe.lora, recipe.seed)
        shape = shape_for([begun, model])  # before DeepSpeed cuts the weights
        more = recipe.warmup_batches * recipe.warmup_steps
        critic = trainer_for(model, recipe.critic_optimizer, steps + more, job.runtime, recipe.dtype)
    policy = trainer_for(begun, recipe.optimizer, steps, job.runtime, recipe.dtype)
    frozen = [freeze(scorer.model) for scorer in scorers] + ([] if reference is begun else [reference])
    models = Models(
        policy=policy.reader,
        reference=policy.reader if reference is begun else reference,
        critic=None if critic is None else critic.reader,
        judge=judge or judge_of(scorers, chat, recipe.limits, job.runtime.score_rows),
        chat=chat,
        resting=frozen if job.runtime.offload else (),
    )
    learner = Learner(method, config, recipe, job.runtime, policy, critic, chat.pad_id, shape,
                      _examples(job, recipe, chat))  # fmt: skip
    prompts = Prompts([row for row, _ in rows], [ids for _, ids in rows])
    return Run(job, recipe, method, config, chat, models, prompts, dropped, learner, names(scorers))


def _reference(job: Job, policy: Any, start: Path, rest: Runtime) -> Any:
    """The frozen policy: with adapters on a policy that starts from it the policy itself, read with them switched off."""
    folder = job.folder("reference") if "reference" in job.inputs else start
    if job.recipe.lora and drawing.fingerprint(folder) == drawing.fingerprint(start):
        return policy
    return freeze(load_policy(folder, rest))


def _critic(folder: Path, start: Path, chat: Chat, job: Job) -> Any:
    """A value model that begins as the reward model; on the policy's own body with V = 0 where that has no scalar head or
    reads through another tokenizer."""
    card = json.loads((folder / CARD).read_text())
    if not {"implicit", "attributes"} & card.keys() and card["fingerprint"] == chat.fingerprint:
        return critic_from_reward(folder, job.runtime)
    model = reward_from_policy(start, job.runtime, job.recipe.seed)
    torch.nn.init.zeros_(model.score.weight)
    return model


def _examples(job: Job, recipe: Online, chat: Chat) -> Spool | list[Item]:
    if recipe.ptx_weight == 0:
        return []
    reader = Reader(chat, recipe.limits, sft, sft.Config())
    items = Spool()
    for folder in job.folders("examples"):
        items.extend(reader.read(read_rows(folder / "rows.parquet", "Example")))
    if not items:
        raise StageError(f"online.ptx_weight {recipe.ptx_weight} needs examples that fit the limits; there are none")
    return items
