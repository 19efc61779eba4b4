"""One finished stage of every kind that the project has, in one store: the micro campaign, and what else there is.

Beside the campaign: a refresh of its base (gather, pack, continuing, measure, transplant, decide), a ranking of its
versions, and its base adopted as if it came from outside.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from benchmarks.reliability.events import in_child
from benchmarks.reliability.forks import Fork
from configs import load
from configs.recipes import Adopt, Rank
from engine.run import RECIPES
from flows import continued
from flows.rounds import align
from storage import Ref, Store, open_store
from tasks import Run, adopt, launch, rank
from tasks.refreshing import open_work
from tasks.stage import Stage

CHOSEN = {  # kind of work -> the stage that stands for it
    "adopt": "adopted", "annotate": "r1-annotate", "certify": "r1-safety-certify", "compare": "compare",
    "continuing": "r1-base", "decide": "r1-decide", "evaluate": "v2-evaluate", "gate": "v2-gate", "gather": "r1-gather",
    "ingest": "demonstrations", "leakage": "leakage", "matrix": "matrix", "measure": "r1-measure", "online": "v2",
    "pack": "r1-pack", "pretrain": "base", "probe": "r1-probe", "rank": "ranking", "reward": "r1-helpfulness",
    "sample": "r1-sample", "score": "r1-score", "select": "r1-select", "train": "v0", "transplant": "r1-transplant",
}  # fmt: skip
REFRESH = {  # a file is JSON, which is YAML too
    "name": "again",
    "campaign": "micro",
    "seed": 11,
    "inboxes": [{"world": "second", "count": 60}],
    "gather": {"near": 0.95},
    "training": {
        "replay": 0.25,
        "sequence_length": 32,
        "batch_size": 4,
        "steps": 6,
        "schedule": {"kind": "cosine", "peak": 0.003},
    },
    "measure": {"sequence_length": 32, "bootstrap": 200},
    "decide": {"bootstrap": 200},
    "short_sft": {"epochs": 0.25, "batch_size": 8},
}


def campaign(folder: Path) -> Run:
    """The micro campaign, laid out over a store that has all of it; made first if need be, in a fork."""
    assert in_child(lambda: _run(lambda: _campaign(folder, "direct"))) == 0, "the undisturbed campaign failed"
    return _campaign(folder, "plan")


def everything(folder: Path) -> tuple[Store, dict[str, Stage]]:
    """A store with a finished stage of every kind, made first if need be, and the chosen stages by kind."""
    assert set(CHOSEN) == set(RECIPES), f"no stage stands for {set(RECIPES) ^ set(CHOSEN)}"
    done = folder / "everything.json"
    if not done.exists():
        assert in_child(lambda: _run(lambda: _everything(folder))) == 0, "the undisturbed stages failed"
        done.write_text("{}")
    store = open_store(folder / "store")
    by_label = {stage.label: stage for stage in stages(store)}
    assert {work: by_label[label].work for work, label in CHOSEN.items()} == {work: work for work in CHOSEN}
    return store, {work: by_label[label] for work, label in CHOSEN.items()}


def stages(store: Store) -> list[Stage]:
    """Every finished stage that the store's campaigns name, as it was when it was made."""
    found = []
    for name, digest in store.campaigns():
        for label, refs in store.campaign(name, digest).notes().items():
            manifest = store.manifest(refs[-1])
            assert manifest is not None
            identity = manifest.record["identity"]
            inputs = {
                role: Ref.parse(keys) if isinstance(keys, str) else tuple(Ref.parse(key) for key in keys)
                for role, keys in identity["inputs"].items()
            }
            recipe = RECIPES[identity["work"]].model_validate(identity["recipe"])  # type: ignore[attr-defined]
            kind = manifest.ref.kind
            stage = Stage(label, identity["work"], kind, identity["version"], recipe, inputs)
            assert stage.ref == manifest.ref, f"{label}: made by other code; remove the folder and begin anew"
            found.append(stage)
    return found


def _run(work: object) -> None:
    launch.use(Fork)
    work()  # type: ignore[operator]
    launch.stop_all()


def _campaign(folder: Path, mode: str) -> Run:
    config = load("micro")
    run = Run(config, open_store(folder), config.runtime, mode=mode)  # type: ignore[arg-type]
    align(run)
    return run


def _everything(folder: Path) -> None:
    run = _campaign(folder / "store", "direct")
    versions = ("v0", "v1", "v2")
    rank(
        run,
        CHOSEN["rank"],
        Rank(versions=versions, seeds=(11,), bootstrap=500),
        evaluations=[run.evaluations[version] for version in versions],
    )
    shutil.rmtree(folder / "outside", ignore_errors=True)  # of a call that was ended
    shutil.copytree(run.store.fetch(run.versions["base"].ref), folder / "outside", copy_function=os.link)
    adopt(run, CHOSEN["adopt"], Adopt(path=str(folder / "outside")))
    (folder / "again.yaml").write_text(json.dumps(REFRESH))
    work = open_work(str(folder / "again.yaml"), store=run.store.url, mode="direct")
    assert len(continued.refresh(work.run, work.plan, work.standing, work.chain)) == 1
