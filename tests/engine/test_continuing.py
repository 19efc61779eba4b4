"""Continued pretraining: replay replaces new text, every corpus has one pointer, a killed run ends with the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pack import folder_of
from tiny_models import train_tokenizer
from transformers import AutoModelForCausalLM

from configs.continuing import Continue, Infinite, Pack, Warmed
from configs.recipes import Template
from engine import continuing, pack
from engine.batches import permutation
from engine.errors import StageError
from engine.job import Job
from engine.template import make_chat, save_card

WORDS = {"new": "shore wave gull crab sand", "old": "hill fox tree bird rain", "older": "book page ink word line"}
RECIPE = Continue(replay=0.25, sequence_length=16, batch_size=4, steps=8, schedule=Warmed(peak=1e-2, warmup=0.1))


@pytest.fixture(scope="session")
def corpora(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three packed corpora of different words, each with two held-out documents."""
    from configs.runtime import Runtime

    found = {}
    for name, words in WORDS.items():
        texts = [" ".join(words.split()[i] for i in permutation(n, name, 0, 5)) for n in range(60)]
        documents = folder_of(tmp_path_factory.mktemp(f"{name}-documents"), texts[2:], texts[:2])
        found[name] = tmp_path_factory.mktemp(name)
        inputs = {"documents": documents, "tokenizer": policy}
        pack.run(Job(stage="pack", recipe=Pack(shard_tokens=500), inputs=inputs, out=found[name], runtime=Runtime()))
    return found


@pytest.fixture
def begin(make_job: Callable[..., Any], policy: Path, corpora: dict[str, Path]) -> Callable[..., Any]:
    """`begin(recipe, out=.., old=[names])`: a job that continues the random policy on the new corpus."""

    def made(recipe: Continue = RECIPE, *, old: tuple[str, ...] = ("old",), **more: Any) -> Any:
        inputs = {"model": policy, "new": corpora["new"], "old": [corpora[name] for name in old]}
        return make_job("continuing", recipe, **{**inputs, **more})

    return made


def same_files(a: Path, b: Path) -> None:
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file()) and names
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_replay_takes_the_place_of_new_text(begin: Callable[..., Any], corpora: dict[str, Path]) -> None:
    """T78: 8 steps of 4 sequences of 16 tokens are 512 tokens whatever the share; with a quarter replayed 384 are new."""
    for replay, new in ((0.0, 512), (0.25, 384), (0.5, 256)):
        job = begin(RECIPE.model_copy(update={"replay": replay}), out=f"r{replay}")
        summary = continuing.run(job)
        assert summary["tokens"] == 512 and summary["steps"] == 8 and summary["replayed"] == replay
        assert summary["new"]["tokens"] == new and summary["old"][0]["tokens"] == 512 - new
        assert job.rows[-1]["replayed"] == replay
        pointers = json.loads((job.out / "continued.json").read_text())["pointers"]
        digests = [json.loads((corpora[name] / "pack.json").read_text())["digest"] for name in ("new", "old")]
        assert pointers == {digests[0]: new, digests[1]: 512 - new}
    assert AutoModelForCausalLM.from_pretrained(job.out).num_parameters() > 0


def test_the_sequences_are_those_of_the_corpora_in_order(begin: Callable[..., Any], corpora: dict[str, Path]) -> None:
    job = begin()
    with continuing.ExitStack() as stack:
        chat = continuing.load_chat(job.folder("model"))
        found = continuing.open_all(job, chat, stack)
        plan = continuing.lay_out(RECIPE, found, {found[1].digest: 40})
        items = [plan.item(i) for step in (1, 2) for i in plan.rows(step)]
        new = [item for place, item in enumerate(items) if place % 4 != 3]
        replayed = items[3::4]
        for number, item in enumerate(new):
            assert item.responses[0].tolist() == found[0].span(16 * number + 1, 16 * number + 17).tolist()
        for number, item in enumerate(replayed):  # from where the base's earlier training left it
            assert item.responses[0].tolist() == found[1].span(40 + 16 * number + 1, 40 + 16 * number + 17).tolist()


def test_steps_are_those_of_the_new_text_alone(begin: Callable[..., Any], corpora: dict[str, Path]) -> None:
    """Epochs are counted without replay: with a quarter replayed three quarters of the new text are read (METHODS 8.2)."""
    tokens = json.loads((corpora["new"] / "pack.json").read_text())["tokens"]
    for replay in (0.0, 0.25):
        summary = continuing.run(begin(RECIPE.model_copy(update={"steps": 0, "replay": replay}), out=f"r{replay}"))
        assert summary["steps"] == -(-tokens // 64)
        assert summary["new"]["epochs"] == pytest.approx((1 - replay), abs=64 / tokens)


class Killed(Exception):
    """The process died here."""


@pytest.mark.parametrize("state", ["reset", "carried"])
def test_run_killed_twice_ends_with_the_same_bytes(
    state: str, begin: Callable[..., Any], save_points: Callable[[], Any]
) -> None:
    recipe = RECIPE.model_copy(update={"publish_optimizer": True, "measure_every": 3, "measure_documents": 1})
    continuing.run(begin(recipe, out="first"))
    before = begin(out="first").out
    recipe = recipe.model_copy(update={"optimizer_state": state})
    more: dict[str, Any] = {"model": before, "old": ("old", "older")} | (
        {"previous": before} if state == "carried" else {}
    )

    def go(out: str, saves: Any, die: bool) -> Any:
        job = begin(recipe, out=out, saves=saves, runtime={"save_steps": 3}, **more)
        if not die:
            continuing.run(job)
            job.finish()
            return job
        save = job.save

        def last(step: int, write: Any) -> None:
            save(step, write)
            raise Killed

        job.save = last
        with pytest.raises(Killed):
            continuing.run(job)
        return job

    whole = go("whole", None, die=False)
    for number in range(2):
        killed = go(f"killed-{number}", save_points(), die=True)
        assert [row["step"] for row in killed.rows] == list(range(1, 3 * number + 4))
    last = go("last", save_points(), die=False)
    assert len(last.rows) == 8 and last.rows == whole.rows
    same_files(whole.out, last.out)


def test_a_save_point_of_other_data_is_refused(begin: Callable[..., Any], save_points: Callable[[], Any]) -> None:
    job = begin(saves=save_points(), runtime={"save_steps": 3})
    save = job.save

    def last(step: int, write: Any) -> None:
        save(step, write)
        raise Killed

    job.save = last
    with pytest.raises(Killed):
        continuing.run(job)
    other = begin(RECIPE.model_copy(update={"replay": 0.5}), out="other", saves=save_points())
    with pytest.raises(StageError, match=r"save point 3 stands at .* in the data, this run at"):
        continuing.run(other)


def test_two_runs_with_carried_state_are_one(begin: Callable[..., Any]) -> None:
    """8 constant steps at once, or 4 and 4 with pointers, moments and their count of updates taken over: the same weights.

    Reset, the second half goes another way: Adam begins again.
    """
    infinite = Infinite(peak=1e-2, constant=5e-3, least=1e-3, restart=True)
    recipe = RECIPE.model_copy(update={"schedule": infinite, "publish_optimizer": True})
    half = recipe.model_copy(update={"steps": 4})
    whole, first = begin(recipe, out="whole"), begin(half, out="half")
    continuing.run(whole)
    continuing.run(first)
    runs = {}
    for state in ("carried", "reset"):
        second = half.model_copy(update={"optimizer_state": state})
        runs[state] = begin(
            second, out=state, model=first.out, **({"previous": first.out} if state == "carried" else {})
        )
        continuing.run(runs[state])
    for name in ("model.safetensors", "continued.json", "optimizer/state.safetensors", "optimizer/state.json"):
        assert (whole.out / name).read_bytes() == (runs["carried"].out / name).read_bytes(), name
    assert (whole.out / "model.safetensors").read_bytes() != (runs["reset"].out / "model.safetensors").read_bytes()


def test_annealing_branches_off_the_constant_phase(begin: Callable[..., Any]) -> None:
    """T79 in a run: constant, then annealed, in one run or as a branch of its own from the constant checkpoint."""
    infinite = Infinite(peak=1e-2, constant=5e-3, least=1e-3, restart=True)
    with_state = RECIPE.model_copy(update={"publish_optimizer": True})
    go = lambda changes: with_state.model_copy(update=changes)
    whole = begin(go({"schedule": infinite.model_copy(update={"anneal": 0.5})}), out="whole")
    trunk = begin(go({"schedule": infinite, "steps": 4}), out="trunk")
    continuing.run(whole)
    continuing.run(trunk)
    annealed = go({"schedule": infinite.model_copy(update={"anneal": 1.0}), "steps": 4, "optimizer_state": "carried"})
    branch = begin(annealed, out="branch", model=trunk.out, previous=trunk.out)
    continuing.run(branch)
    assert [row["rate"] for row in whole.rows] == [row["rate"] for row in (*trunk.rows, *branch.rows)]
    assert (whole.out / "model.safetensors").read_bytes() == (branch.out / "model.safetensors").read_bytes()


def test_held_out_losses_are_in_the_curve_and_change_nothing(begin: Callable[..., Any]) -> None:
    watched = begin(RECIPE.model_copy(update={"measure_every": 4}), out="watched")
    plain = begin(out="plain")
    for job in (watched, plain):
        continuing.run(job)
    shown = [row["step"] for row in watched.rows if "nats/new" in row and "nats/old-1" in row]
    assert shown == [1, 4, 8]
    losses = [row["nats/new"] for row in watched.rows if "nats/new" in row]
    assert losses[-1] < losses[0]
    same_files(watched.out, plain.out)


@pytest.mark.parametrize(
    "changes, old, said",
    [
        ({}, (), "replay is 0.25 but no old corpus was given"),
        ({"weights": (1.0, 2.0)}, ("old",), "2 weights for 1 old corpora"),
        ({}, ("new",), "old corpus 1 is the same text as the new corpus"),
        ({}, ("old", "old"), "old corpus 2 is the same text as old corpus 1"),
        ({"sequence_length": 5000}, ("old",), "the new corpus has .* tokens, less than one sequence of 5000"),
        ({"sequence_length": 200}, ("old",), "sequence_length 200 is more than the 128 positions of the model"),
        ({"optimizer_state": "carried"}, ("old",), "carried but no previous run was given"),
    ],
)
def test_impossible_runs_are_refused(
    changes: dict[str, Any], old: tuple[str, ...], said: str, begin: Callable[..., Any]
) -> None:
    with pytest.raises(StageError, match=said):
        continuing.run(begin(RECIPE.model_copy(update=changes), old=old))


def test_state_that_does_not_fit_is_refused(
    begin: Callable[..., Any], policies: dict[str, Path], tmp_path: Path
) -> None:
    carried = RECIPE.model_copy(update={"optimizer_state": "carried"})
    with pytest.raises(StageError, match=r"no optimizer/state.json, so there is no optimizer state to carry"):
        continuing.run(begin(carried, previous=policies["llama"]))
    other = begin(RECIPE.model_copy(update={"publish_optimizer": True}), out="other", model=policies["gpt2"])
    continuing.run(other)
    with pytest.raises(StageError, match="its optimizer state is of another model: exp_avg/"):
        continuing.run(begin(carried, previous=other.out))


def test_corpora_of_another_tokenizer_are_refused(
    begin: Callable[..., Any], make_job: Callable[..., Any], tmp_path: Path
) -> None:
    save_card(make_chat(train_tokenizer(310), Template()), tmp_path / "other", "policy")
    documents = folder_of(tmp_path / "documents", ["a bird sings in the tree"] * 40)
    job = make_job("pack", Pack(), out="packed", documents=documents, tokenizer=tmp_path / "other")
    pack.run(job)
    one = begin()
    one.inputs = {**one.inputs, "old": [job.out]}
    with pytest.raises(StageError, match="old corpus 1: packed with tokenizer"):
        continuing.run(one)
