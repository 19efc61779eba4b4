"""Which planted defects of a reward model its certificate rejects, and how often it rejects a sound one.

    python -m benchmarks.defects --seeds 5

Real reward models of 70 k parameters, trained on 1200 pairs of the built-in world, each seed with other pairs, other weights
and another order. A defect counts as rejected when the certificate is not passed. Prints Markdown.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.collapses import false_alarm_bound
from benchmarks.world_pairs import (
    Row,
    longer_wins,
    preferences,
    reward_recipe,
    store,
    swapped,
    train_base,
    train_reward,
)
from configs.certify import Certify, Requirements
from configs.recipes import Template
from configs.runtime import Runtime
from engine import certify, invariance
from engine.formats import is_held_out
from engine.job import Job
from engine.models import load_policy, save_model
from engine.reward import STREAM
from engine.template import load_chat, make_chat
from storage.rows import write_rows

PAIRS = 1200
LEAKED = 30  # evaluation prompts that stand among the training rows
SAFETY: Mapping[str, Any] = {"kind": "safety", "own_share": 0.9, "config": {"safety_weight": 1.0}, "epochs": 4}
FOREIGN = Template(user="Q: {content}\n", assistant="A: {content}")


@dataclass(frozen=True)
class Scene:
    """One seed's pairs, the base, and a sound model on it; everything is made under `root`."""

    root: Path
    seed: int
    rows: list[Row]
    base: Path
    sound: Path

    def trained(self, name: str, change: Callable[[Row], Row] = lambda row: row, **more: Any) -> Path:
        """A reward model on these pairs, changed first."""
        given = {"base": self.base, "rows": self.rows, **more}
        base, rows = given.pop("base"), given.pop("rows")
        return train_reward(self.root / name, base, rows, change, seed=self.seed, **given)

    def failed(self, name: str, model: Path, recipe: Certify | None = None, **inputs: Any) -> set[str]:
        """The requirements that a model's certificate does not meet."""
        out = self.root / f"{name}-certificate"
        out.mkdir(parents=True)
        given = {"reward": model, "policy": self.base, "preferences": [self.root / "pairs"], **inputs}
        certify.run(Job("certify", recipe or Certify(reward=reward_recipe()), given, out, Runtime()))
        found = json.loads((out / "certificate.json").read_text())
        return {check["name"] for check in found["checks"] if not check["passed"]}


def foreign(base: Path, folder: Path) -> Path:
    """The base under another template: a model on it reads other texts than the policy writes."""
    chat = make_chat(load_chat(base).tokenizer, FOREIGN)
    save_model(load_policy(base, Runtime()), chat, folder, "policy")
    return folder


def padded(model: Path, folder: Path, pad_id: int | None) -> Path:
    """The model with another pad token in its config, by which transformers finds the last token."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": pad_id}))
    return folder


@contextlib.contextmanager
def last_column() -> Iterator[None]:
    """The classic bug: the score is read at the end of the padded row, not at the end of the response."""
    right = invariance.collate

    def planted(*given: Any, **more: Any) -> Any:
        batch = right(*given, **more)
        rows, width = batch.ids.shape
        object.__setattr__(batch, "last", torch.arange(rows) * width + width - 1)
        return batch

    invariance.collate = planted
    try:
        yield
    finally:
        invariance.collate = right


def leaked(scene: Scene) -> Path:
    """Evaluation prompts that are training rows, one of them with other punctuation."""
    asked = [row["messages"] for row in scene.rows if not is_held_out(row, 0.2, STREAM)][:LEAKED]
    asked[0] = [{**turn, "content": turn["content"].replace(".", " ...").replace("?", " ??")} for turn in asked[0]]
    held = [
        {"id": f"e{i}", "messages": messages, "category": "c", "is_safety": False, "source": "evaluation"}
        for i, messages in enumerate(asked)
    ]
    write_rows(scene.root / "prompts" / "held_out.parquet", "Prompt", held)
    return scene.root / "prompts"


def planted(scene: Scene, other: Path) -> Iterator[tuple[str, set[str]]]:
    """(what was planted, the requirements that reject it). other: a base that reads through another template."""
    yield "labels flipped in training", scene.failed("flipped", scene.trained("flipped", swapped))
    longer = scene.trained("longer", longer_wins)
    yield "trained on: the longer one wins", scene.failed("longer", longer)
    theirs = store(scene.root / "longer-pairs-too", [longer_wins(row) for row in scene.rows])
    yield "the same, and the annotators count tokens too", scene.failed("longer-too", longer, preferences=[theirs])
    yield "another template than the policy's", scene.failed("foreign", scene.trained("foreign", base=other))
    for name, pad_id in (("wrong", 2), ("missing", None)):
        model = padded(scene.sound, scene.root / f"pad-{name}", pad_id)
        yield f"{name} pad token in config.json", scene.failed(f"pad-{name}", model)
    with last_column():
        yield "score read at the last column", scene.failed("column", scene.sound)
    few = scene.rows[:60] + [row for row in scene.rows[60:] if row["kind"] == "helpfulness"][:40]
    by_heart = {"epochs": 60, "own_share": 1.0}
    recipe = Certify(reward=reward_recipe(**by_heart), require=Requirements(accuracy=None, accuracy_low=None, pairs=0))
    pairs = store(scene.root / "few", few)
    model = scene.trained("parrot", rows=few, **by_heart)
    yield "100 pairs learned by heart", scene.failed("parrot", model, recipe, preferences=[pairs])
    yield f"{LEAKED} evaluation prompts in training", scene.failed("leaked", scene.sound, prompts=leaked(scene))
    yield "no held-out pair", scene.failed("none", scene.sound, Certify(reward=reward_recipe(held_out=0.0)))


def sound(scene: Scene) -> Iterator[tuple[str, set[str]]]:
    """(kind of model, what its certificate says against it), on its own held-out pairs."""
    yield "helpfulness", scene.failed("sound", scene.sound)
    safety = scene.trained("safety", **SAFETY)
    yield "safety", scene.failed("safety", safety, Certify(reward=reward_recipe(**SAFETY)), other=scene.sound)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    rejected, reasons, accepted = Counter[str](), dict[str, Counter[str]](), dict[str, list[set[str]]]()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the stages' event lines
        root = Path(folder)
        base = train_base(root / "start")
        other = foreign(base, root / "foreign")
        for seed in range(1, seeds + 1):
            rows, place = preferences(PAIRS, seed=seed), root / str(seed)
            store(place / "pairs", rows)
            scene = Scene(place, seed, rows, base, train_reward(place / "sound", base, rows, seed=seed))
            for name, against in planted(scene, other):
                rejected[name] += bool(against)
                reasons.setdefault(name, Counter()).update(against)
            for kind, against in sound(scene):
                accepted.setdefault(kind, []).append(against)
    print("| planted | rejected | by |\n|---|---|---|")
    for name, found in reasons.items():
        by = ", ".join(f"`{rule}` {count}" for rule, count in found.most_common())
        print(f"| {name} | {rejected[name]} of {seeds} | {by} |")
    wrong = [against for found in accepted.values() for against in found if against]
    runs = sum(map(len, accepted.values()))
    kinds = ", ".join(f"{sum(not a for a in found)} of {len(found)} {kind}" for kind, found in accepted.items())
    bound = "" if wrong else f"; at 95 % at most {100 * false_alarm_bound(runs):.0f} % of sound models are rejected"
    print(f"\nSound models accepted: {kinds}. False alarms: {len(wrong)} of {runs}{bound}.")
    for against in wrong:
        print(f"- rejected for {', '.join(sorted(against))}")


if __name__ == "__main__":
    main()
