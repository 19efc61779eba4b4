"""The margin in the reward model's loss helps most where the preference is strongest."""

from collections import defaultdict
from pathlib import Path

import methods
from benchmarks.claims.lab import Effect, Lab, difference_effect
from configs.recipes import Reward
from engine.examples import Reader
from engine.job import Job
from engine.models import load_reward
from engine.reward import judge, split
from engine.template import load_chat
from storage.rows import read_rows
from tasks import Artifact, reward

TEXT = 'the margin helps most on "significantly better" pairs'
SOURCE = "Llama 2, table 28"
MATTERS, UNIT = 0.02, "accuracy"


def without(lab: Lab) -> Artifact:
    """The helpfulness model trained with no margin, all else equal."""
    recipe = lab.campaign.rewards["helpfulness"].model_copy(update={"config": {"margin": "none"}})
    label = lab.shared.label("helpfulness-no-margin")
    if label not in lab.run.artifacts:
        reward(lab.run, label, recipe, model=lab.shared.start, preferences=[lab.shared.preferences])
    return lab.run.artifacts[label]


def stages(lab: Lab) -> list:
    return [lab.shared.rewards[0], without(lab), lab.shared.preferences]


def right_by_grade(lab: Lab, model: Artifact) -> dict[int, list[float]]:
    """Of every held-out helpfulness pair whether the model is right, by grade, in one order."""
    recipe = model.stage.recipe
    assert isinstance(recipe, Reward)
    folder = lab.folder(model)
    method, chat = methods.load(recipe.method), load_chat(folder)
    reader = Reader(chat, recipe.limits, method, method.Config(**recipe.config))
    rows = read_rows(lab.folder(lab.shared.preferences) / "rows.parquet", "Preference")
    _, held = split(reader, (row for row in rows if row["kind"] == "helpfulness"), recipe.held_out)
    job = Job("reward", recipe, {}, Path("."), lab.run.runtime)
    found: dict[int, list[float]] = defaultdict(list)
    for item, (good, bad) in zip(held, judge(job, load_reward(folder, lab.run.runtime), held, chat.pad_id)):
        found[int(item.grade)].append(float(good > bad))
    return found


def measure(lab: Lab) -> Effect:
    """Gain in accuracy by the margin on grade 3, less its gain on the other grades."""
    with_, none = right_by_grade(lab, lab.shared.rewards[0]), right_by_grade(lab, without(lab))
    gains = {grade: [a - b for a, b in zip(with_[grade], none[grade], strict=True)] for grade in with_}
    rest = [gain for grade, values in gains.items() if grade < 3 for gain in values]
    shares = ", ".join(f"grade {g} {sum(v) / len(v):+.3f} of {len(v)}" for g, v in sorted(gains.items()))
    return difference_effect(gains[3], rest, f"gain by {shares}")
