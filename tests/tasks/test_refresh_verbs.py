"""The verbs of continued pretraining: what names their results, and the chain from documents to a moved chat model."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs import Base, Campaign, Data, Runtime
from configs.continuing import Continue, Measure, Pack, Transplant, Warmed
from configs.recipes import Ingest, Pretrain, Source, Tokenizer
from storage import open_store
from tasks import Artifact, Run, continue_pretraining, ingest, measure, pack, pretrain, transplant
from tasks.launch import StageFailed, stop_all

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
RECIPE = Continue(replay=0.25, sequence_length=32, batch_size=4, steps=6, schedule=Warmed(peak=1e-2))


def begin(folder: Path, mode: Any) -> Run:
    recipe = Pretrain(
        architecture=SHAPE, tokenizer=Tokenizer(vocab_size=300), sequence_length=32, batch_size=4, steps=5
    )
    campaign = Campaign(name="verbs", data=Data(), base=Base(pretrain=recipe), runtime=Runtime(save_steps=2))
    return Run(campaign, open_store(folder / "store"), campaign.runtime, mode=mode)


def lay_out(run: Run, recipe: Continue = RECIPE, **changes: Any) -> dict[str, Artifact]:
    """Two corpora, a base, the base continued and measured, and the chat model (here the base) moved."""
    rows = {
        domain: ingest(
            run,
            f"{domain}-documents",
            Ingest(rows="documents", sources=(Source(world="documents", domain=domain, count=120),), held_out=0.2),
        )
        for domain in ("main", "second")
    }
    assert run.campaign.base.pretrain is not None
    base = pretrain(run, "base", run.campaign.base.pretrain, documents=rows["main"])
    packed = {d: pack(run, f"{d}-corpus", Pack(), documents=found, tokenizer=base) for d, found in rows.items()}
    more = {"previous": base if changes.get("previous") else None}
    new = continue_pretraining(run, "new", recipe, model=base, new=packed["second"], old=[packed["main"]], **more)
    measured = measure(
        run, "measure", Measure(labels=("base", "new"), corpora=("old", "new"), sequence_length=32),
        models=[base, new], corpora=[packed["main"], packed["second"]],
    )  # fmt: skip
    moved = transplant(run, "moved", Transplant(), chat=base, old_base=base, new_base=new)
    return {"base": base, "new": new, "measure": measured, "moved": moved, **packed}


def test_names_hold_what_decides_the_result_and_nothing_else(tmp_path: Path) -> None:
    names = lambda *more, **changes: {
        label: artifact.ref for label, artifact in lay_out(begin(tmp_path, "plan"), *more, **changes).items()
    }
    plain = names()
    assert names() == plain
    assert names(previous=True) == plain  # the recipe resets the optimizer, so the run before is not read
    carried = RECIPE.model_copy(update={"optimizer_state": "carried"})
    assert names(carried)["new"] != names(carried, previous=True)["new"]
    for field, value in {"replay": 0.5, "weights": (2.0,), "schedule": Warmed(peak=2e-2), "steps": 7}.items():
        other = names(RECIPE.model_copy(update={field: value}))
        assert {label for label in plain if plain[label] != other[label]} == {"new", "measure", "moved"}, field


@pytest.mark.slow
@pytest.mark.slow_short
def test_the_chain_runs_and_a_mistake_is_told_in_one_line(tmp_path: Path) -> None:
    try:
        run = begin(tmp_path, "direct")
        made = lay_out(run)
        summary = made["measure"].summary()
        assert summary is not None and summary["differences"]["new"]["new"]["high"] < 0  # gained
        folders = {label: run.store.fetch(artifact.ref) for label, artifact in made.items()}
        assert (folders["new"] / "model.safetensors").read_bytes() == (
            folders["moved"] / "model.safetensors"
        ).read_bytes()
        card = json.loads((folders["new"] / "continued.json").read_text())
        assert sum(card["pointers"].values()) == 6 * 4 * 32
        again = lay_out(begin(tmp_path, "plan"))
        assert all(artifact.made() is not None for artifact in again.values())
        with pytest.raises(StageFailed, match="bad: optimizer_state is carried but no previous run was given"):
            carried = RECIPE.model_copy(update={"optimizer_state": "carried"})
            continue_pretraining(
                run, "bad", carried, model=made["base"], new=made["second"], old=[made["main"]], previous=None
            )
    finally:
        stop_all()
