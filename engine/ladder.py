"""What an online run does about an alarm: it goes back to its anchor and takes the next rung of the ladder.

An anchor is a whole state of the run (weights and moments of policy and critic, what the method counts) at which no rule
held. The batches of rollouts go on being counted, so that after a rung the run draws other prompts and other responses,
and nothing in its curve is overwritten. Everything here is a function of the curve and the recipe: a run that is killed
in the middle of its ladder ends with the same bytes.

Source: METHODS 5.4 (stop, restore the last good checkpoint); the rungs are ours.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.recipes import Optimizer, Tripwires
from engine.errors import StageError
from engine.sharding import Schedule
from engine.updates import Learner

ORIGIN, ANCHOR, CANDIDATE = "origin", "anchor", "candidate"  # the start; the last sound state; the one being judged
COUNTED = "counted.json"
State = dict[str, Any]


class Anchors:
    """States of a run in a local folder: the one it began with, the anchor, and the candidate for the next anchor."""

    def __init__(self, folder: Path, learner: Learner, counted: Mapping[str, Any]) -> None:
        self._folder = folder
        for name in (ORIGIN, ANCHOR):
            self._write(name, learner, counted)

    def propose(self, learner: Learner, counted: Mapping[str, Any]) -> None:
        """Keep the present state until it is known whether it is sound."""
        self._write(CANDIDATE, learner, counted)

    def accept(self) -> None:
        """The candidate becomes the anchor."""
        self._replace(CANDIDATE)

    def rewind(self) -> None:
        """The state that the run began with becomes the anchor."""
        self._replace(ORIGIN)

    def restore(self, learner: Learner) -> State:
        """Bring policy and critic back to the anchor; returns what was counted there."""
        record: State = json.loads((self._folder / ANCHOR / COUNTED).read_text())
        for name, trainer in trainers(learner).items():
            trainer.restore(self._folder / ANCHOR, record[name], name)
        counted: State = record["counted"]
        return counted

    def save(self, folder: Path) -> None:
        """Put the anchor into a save point."""
        for file in (self._folder / ANCHOR).iterdir():
            shutil.copyfile(file, folder / f"{ANCHOR}-{file.name}")

    def load(self, folder: Path) -> None:
        """Take the anchor out of a save point."""
        for file in folder.glob(f"{ANCHOR}-*"):
            shutil.copyfile(file, self._folder / ANCHOR / file.name.removeprefix(f"{ANCHOR}-"))

    def _write(self, name: str, learner: Learner, counted: Mapping[str, Any]) -> None:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        record: State = {}
        for part, trainer in trainers(learner).items():
            trainer.collect(everywhere=True)
            record[part] = trainer.save(folder, part)
        (folder / COUNTED).write_text(json.dumps({**record, "counted": counted}))

    def _replace(self, name: str) -> None:
        for file in (self._folder / name).iterdir():
            shutil.copyfile(file, self._folder / ANCHOR / file.name)


def trainers(learner: Learner) -> dict[str, Any]:
    """Policy and critic, where there is one, by the names of their files."""
    return {"policy": learner.policy, **({} if learner.critic is None else {"critic": learner.critic})}


def check_ladder(rules: Tripwires, method: str, config: Any) -> None:
    """Raise StageError where a rung of the ladder would change nothing."""
    if rules.on_alarm == "ladder" and "raise_kl" in rules.ladder and not hasattr(config, "kl_coef"):
        raise StageError(
            f"online.tripwires.ladder has raise_kl, but method {method} has no kl_coef: leave that rung out"
        )


def next_rung(rules: Tripwires, taken: list[str]) -> str:
    """What the next alarm leads to; the end when every rung was taken."""
    rungs = rules.ladder if rules.on_alarm == "ladder" else ("stop",)
    return next((rung for rung in rungs if rung not in taken), "stop")


def adjust(learner: Learner, config: Any, taken: list[str]) -> Learner:
    """The learner under what the rungs taken so far have changed: learning rates, KL coefficient.

    config: the method's, as the recipe has it.
    """
    rules = learner.recipe.tripwires
    factor = rules.rate_factor if "lower_learning_rate" in taken else 1.0
    for plain, recipe in (
        (learner.policy, learner.recipe.optimizer),
        (learner.critic, learner.recipe.critic_optimizer),
    ):
        if plain is not None:
            plain.schedule = _slower(plain.schedule, recipe, factor)
    if "raise_kl" in taken:
        config = replace(config, kl_coef=raised(config.kl_coef, rules))
    return replace(learner, config=config)


def raised(kl_coef: float, rules: Tripwires) -> float:
    """A KL coefficient after the rung raise_kl."""
    return max(rules.kl_least, rules.kl_factor * kl_coef)


def _slower(schedule: Schedule, recipe: Optimizer, factor: float) -> Schedule:
    return Schedule(recipe.model_copy(update={"learning_rate": recipe.learning_rate * factor}), schedule.total)
