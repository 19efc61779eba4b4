"""Refreshes in a row on a real store: documents arrive, one dies, nothing is new, and the bytes are those of a quiet run."""

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from refreshes import House, roots, shore

from benchmarks.flop_truth import Truth
from benchmarks.forecast import mean
from cli.calibration import costs_of, estimate
from cli.costs import Lengths, sizes_of
from cli.forecast import forecast
from cli.reads import Reads, architecture_of, reads_of
from configs import ConfigError
from engine.tables import read_table
from flows import continued
from flows.rounds import align
from storage.rows import read_rows
from tasks import Run, launch
from tasks.launch import StageFailed
from tasks.refreshing import open_work, rounds_of
from tasks.standing import Standing, given

pytestmark = [pytest.mark.slow, pytest.mark.slow_short]
DOCS = shore()
PARTS = {"a.jsonl": DOCS[:50], "b.jsonl": DOCS[40:100], "c.jsonl": DOCS[100:150]}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A campaign without rounds, run once; refreshes are tried on copies of its store."""
    house = House(tmp_path_factory.mktemp("house"), [])
    house.align()
    return house


@pytest.fixture(scope="module")
def quiet(aligned: House, tmp_path_factory: pytest.TempPathFactory) -> tuple[House, dict[str, str]]:
    """Three refreshes that nothing disturbs, and one look between them that finds nothing; the digests of all results."""
    house = fresh(aligned, tmp_path_factory.mktemp("quiet"))
    for number, (name, texts) in enumerate(PARTS.items(), start=1):
        house.put(name, texts)
        _, made = house.refresh()
        assert [entry.number for entry in made] == [number]
        work, made = house.refresh()
        assert made == [] and [e.number for e in work.chain.entries()] == list(range(1, number + 1))
    return house, roots(work)


def fresh(aligned: House, root: Path) -> House:
    """A copy of the house with an empty inbox; the inbox is where it was, since its place is part of the names."""
    for file in aligned.inbox.iterdir():
        file.unlink()
    return aligned.copy(root)


def kill_stage_of(label: str) -> Any:
    """A listener that kills the process of a stage after its first save point, once."""
    killed: list[str] = []

    def hear(said: str, event: dict[str, Any]) -> None:
        if said == label and event["event"] == "saved" and not killed:
            killed.append(said)
            assert launch._server is not None
            for running in launch._server.running.values():
                if running.pid:
                    os.kill(running.pid, signal.SIGKILL)

    return hear


def test_each_refresh_goes_on_from_the_one_before(quiet: tuple[House, dict[str, str]]) -> None:
    work = quiet[0].open()
    one, two, three = work.chain.entries()
    record = lambda key: given(work.run.store, "x", key).manifest.record
    inputs = lambda key: record(key)["identity"]["inputs"]
    assert inputs(one.base)["model"] == work.standing.base.ref.key
    assert inputs(two.base)["model"] == one.base and inputs(three.base)["model"] == two.base
    # replay is drawn from all of the history: the base's own text and every earlier refresh's, by their tokens
    assert inputs(three.base)["old"][1:] == [one.corpus, two.corpus] and inputs(three.base)["new"] == three.corpus
    seed = lambda key: record(key)["identity"]["recipe"]["seed"]
    assert seed(inputs(three.base)["old"][0]) == seed(work.standing.base.ref.key) != seed(one.corpus)  # the same order
    assert record(three.base)["summary"]["replayed"] == pytest.approx(0.25, abs=1 / 24)
    # ten documents of b.jsonl lay in a.jsonl already
    look = record(two.gather)["summary"]
    assert look["exact_duplicates"] >= 10 and look["documents"] + look["held_out"] <= 50
    texts = [
        {
            row["text"]
            for row in read_rows(work.run.store.fetch(given(work.run.store, "x", e.gather).ref) / "rows.parquet")
        }
        for e in (one, two, three)
    ]
    assert not texts[0] & texts[1] and not texts[1] & texts[2] and all(texts)
    measured = record(three.measure)["summary"]
    assert list(measured["models"]["after"]) == ["r0-pack-0", "r1-pack", "r2-pack", "r3-pack"]
    decided = record(three.decision)["summary"]
    assert decided["old"] == work.standing.version == "v0" and set(decided["levels"]) == {"r3-transplant", "r3-rebuilt"}


def test_killed_and_resumed_while_more_arrives_the_bytes_are_those_of_a_quiet_run(
    quiet: tuple[House, dict[str, str]], aligned: House, tmp_path: Path
) -> None:
    house = fresh(aligned, tmp_path)
    house.put("a.jsonl", PARTS["a.jsonl"])
    with pytest.raises(StageFailed, match="signal 9"):
        house.refresh(kill_stage_of("r1-base"))
    house.put("b.jsonl", PARTS["b.jsonl"])  # arrives before the dead refresh is resumed
    logs: list[str] = []
    work, made = house.refresh(
        lambda label, event: logs.append(f"{label} {event}") if event["event"] == "log" else None
    )
    assert any("r1-base" in line and "continues from save point 4" in line for line in logs)
    assert [entry.number for entry in made] == [1, 2]
    assert house.refresh()[1] == []
    house.put("c.jsonl", PARTS["c.jsonl"])
    work, made = house.refresh()
    assert [entry.number for entry in made] == [3]
    assert roots(work) == quiet[1]


def test_a_look_that_is_gone_is_looked_again(quiet: tuple[House, dict[str, str]], tmp_path: Path) -> None:
    """A begun refresh whose gathered documents were lost finds the same ones again, and the digests are the same."""
    house = quiet[0].copy(tmp_path)
    entry = house.open().chain.entries()[-1]
    home = Path(house.root / "store/refreshes")
    for path in home.rglob("r0003.json"):
        path.unlink()
    shutil.rmtree(house.root / "store/artifacts" / entry.gather)
    _, made = house.refresh()
    assert made == [entry]


def test_few_documents_wait_until_they_are_worth_it(aligned: House, tmp_path: Path) -> None:
    house = fresh(aligned, tmp_path)
    plan = yaml.safe_load((tmp_path / "refresh.yaml").read_text())
    house.write("refresh", plan | {"least": 20})
    house.put("a.jsonl", DOCS[:10])
    logs: list[str] = []
    work, made = house.refresh(lambda label, event: logs.append(str(event.get("text"))))
    assert made == [] and any("they wait for the next look" in line for line in logs)
    house.put("b.jsonl", DOCS[10:50])
    _, made = house.refresh()
    found = given(work.run.store, "x", made[0].gather).summary()
    assert found is not None and found["files"] == 2  # the ten are in it


def test_the_follow_ups_start_from_the_new_base(quiet: tuple[House, dict[str, str]], tmp_path: Path) -> None:
    house = quiet[0].copy(tmp_path)
    work = house.open()
    entry = work.entry(2)
    judged = continued.short_sft(work.run, work.plan, work.standing, entry)
    made = work.run.artifacts["r2-short-sft"].made()
    assert made is not None and made.manifest.record["identity"]["inputs"]["model"] == entry.chat
    assert (judged.summary() or {})["against"]["v0"]
    run = rounds_of(work, entry)
    align(run, base=given(run.store, "base", entry.base))
    again = Standing(run.store, run.campaign)
    assert again.base.ref.key == entry.base and again.version == "v0"
    assert json.loads(json.dumps(run.record.body()))["name"] == "micro-again-r2"


@pytest.mark.parametrize("number", [0, 4, -1])
def test_a_refresh_that_is_not_there_is_one_line(quiet: tuple[House, dict[str, str]], number: int) -> None:
    with pytest.raises(ConfigError, match=rf"micro-again has no r{number}: it has 3 refreshes"):
        quiet[0].open().entry(number)


def test_a_campaign_that_was_not_run_is_one_line(aligned: House, tmp_path: Path) -> None:
    store = (tmp_path / "elsewhere").as_uri()
    with pytest.raises(
        ConfigError, match=r"campaign micro-\w{16} has not been run here: run it first, `roundhouse run"
    ):
        open_work(str(aligned.root / "refresh.yaml"), store=store, mode="direct")
    with pytest.raises(
        ConfigError, match=r"another config, seed or version of this software: name it as record: micro-\w{16}"
    ):
        open_work(str(aligned.root / "refresh.yaml"), seed=5, store=aligned.store, mode="direct")


def test_a_chain_goes_on_when_the_campaign_s_config_has_changed(aligned: House, tmp_path: Path) -> None:
    """Another software may know another setting: the record that is named stays the campaign's, and the chain the same."""
    before = aligned.open()
    house = fresh(aligned, tmp_path)
    for name, change in (
        ("campaign", {"compare": {"bootstrap": 300}}),
        ("refresh", {"campaign": str(tmp_path / "campaign.yaml")}),
    ):
        house.write(name, yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) | change)
    with pytest.raises(ConfigError, match="has not been run here"):
        house.open()
    plan = yaml.safe_load((tmp_path / "refresh.yaml").read_text())
    house.write("refresh", plan | {"record": f"micro-{before.standing.mark}"})
    after = house.open()
    assert after.chain.home == before.chain.home and after.standing.base.ref == before.standing.base.ref
    house.write("refresh", plan | {"record": "tiny-" + "0" * 16})
    with pytest.raises(ConfigError, match="record tiny-0000000000000000 is not one of campaign micro"):
        house.open()


def test_every_version_of_a_whole_campaign_is_rebuilt_from_its_rows(tmp_path: Path) -> None:
    """A policy trained online on top of a selected round: what can be rebuilt is the round, on the rows it was trained on."""
    house = House(tmp_path, [{"method": "rejection"}, {"method": "ppo", "annotate": "none", "reward": "keep"}])
    run: Run = house.align()
    house.put("a.jsonl", PARTS["a.jsonl"])
    work, (entry,) = house.refresh()
    chat = work.standing.version
    rebuilt = [a for label, a in work.run.artifacts.items() if label.startswith("r1-rebuilt-v")]
    below = "v1" if chat in ("v1", "v2") else "v0"
    assert [a.label for a in rebuilt] == [f"r1-rebuilt-{below}"]
    mine, theirs = (a.made().manifest.record["identity"] for a in (rebuilt[0], run.versions[below]))  # type: ignore[union-attr]
    assert mine["recipe"] == theirs["recipe"] and mine["inputs"]["model"] == entry.base
    assert {k: v for k, v in mine["inputs"].items() if k != "model"} == {
        k: v for k, v in theirs["inputs"].items() if k != "model"
    }
    decided = given(work.run.store, "x", entry.decision).summary() or {}
    assert "score" in decided["compared"]["r1-rebuilt"] and decided["action"] in ("nothing", "short-sft", "rounds")


def again(house: House, number: int, tmp_path: Path) -> Run:
    """The stages of a finished refresh, laid out once more in a copy of the house whose record ends before it."""
    house = house.copy(tmp_path / f"r{number}")
    for path in Path(house.root / "store/refreshes").rglob("r000?.json"):
        if int(path.stem[1:]) >= number:
            path.unlink()
    work = open_work(str(house.root / "refresh.yaml"), store=house.store, mode="plan")
    continued.lay_out(work.run, work.plan, work.standing, work.chain)
    return work.run


def test_the_forecast_of_a_refresh_is_what_it_took(quiet: tuple[House, dict[str, str]], tmp_path: Path) -> None:
    """Steps, tokens and FLOPs (as torch counts each sequence by itself) exactly; bytes and memory by what the refresh before
    has taken."""
    second, third = (again(quiet[0], number, tmp_path) for number in (2, 3))
    costs = costs_of(second)
    found, real = {}, {}
    for label, artifact in third.artifacts.items():
        made = artifact.made()
        assert made is not None, label
        found[label] = estimate(artifact, third.runtime, costs, reads_of(artifact, made.summary))
        real[label] = made.manifest
    summary = lambda label: real[label].record["summary"]
    base, packed, measured = found["r3-base"], found["r3-pack"], found["r3-measure"]
    truth = Truth(dict(architecture_of(third.artifacts["r3-base"]) or {}), None)
    assert (base.steps, base.tokens) == (summary("r3-base")["steps"], summary("r3-base")["tokens"]) == (6, 6 * 4 * 32)
    assert base.flops == pytest.approx(truth.flops("train", 1, 32, 6 * 4), rel=1e-3)
    assert packed.tokens == summary("r3-pack")["tokens"]
    windows: Counter[tuple[int, int]] = Counter()
    for label in ("r0-pack-0", "r1-pack", "r2-pack", "r3-pack"):
        for row in read_table(third.store.fetch(given_pack(third, label).ref) / "held_out.parquet"):
            count = len(row["token_ids"])
            windows.update((1, min(32, count - first)) for first in range(0, count, 32))
    exact = forecast(third.artifacts["r3-measure"], third.runtime, Reads(windows.total(), mean(windows)))
    read = sum(truth.flops("read", *pair, count) for pair, count in windows.items())
    assert exact.flops == pytest.approx(2 * read, rel=1e-9)
    assert measured.flops == pytest.approx(exact.flops, rel=0.1)  # every document as long as the mean of its corpus
    for label in ("r3-base", "r3-transplant", "r3-rebuilt-v0"):
        assert found[label].stored == pytest.approx(real[label].bytes, rel=0.02), label
    assert packed.stored == pytest.approx(real["r3-pack"].bytes, rel=0.1)
    for label, one in found.items():
        assert one.memory == pytest.approx(real[label].record["peak_bytes"], rel=0.15), label


def given_pack(run: Run, label: str) -> Any:
    """A corpus of the run, or one that an earlier refresh has packed."""
    known = {a.label: a for a in run.artifacts["r3-measure"].upstream}
    return run.artifacts.get(label) or known[label]


def test_a_refresh_is_planned_before_its_documents_are_read(aligned: House, tmp_path: Path) -> None:
    """Nothing is written. 6 steps of 4 sequences; the curve's held-out windows of 2 documents at steps 1, 2, 4 and 6: those of
    the base's own text are read, how long the new ones will be is not known."""
    house = fresh(aligned, tmp_path)
    plan = yaml.safe_load((tmp_path / "refresh.yaml").read_text())
    house.write("refresh", plan | {"training": plan["training"] | {"measure_every": 2, "measure_documents": 2}})
    house.put("a.jsonl", DOCS[:50])
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    work = open_work(str(tmp_path / "refresh.yaml"), store=house.store, mode="plan")
    continued.lay_out(work.run, work.plan, work.standing, work.chain)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    artifacts = work.run.artifacts
    found = forecast(artifacts["r1-base"], work.run.runtime)
    said = work.standing.base.summary() or {}
    each = said["corpus_tokens"] / said["documents"]
    whole, rest = divmod(each, 32)
    size = sizes_of(architecture_of(artifacts["r1-base"]) or {})
    window = lambda tokens: size.forward(Lengths.fixed(1, tokens), tokens)
    looked = 2 * (whole * window(32) + window(rest))
    assert found.steps == 6 and found.tokens == 768
    assert found.flops == pytest.approx(24 * size.learning(Lengths.fixed(1, 32), 32) + 4 * looked)
    assert forecast(artifacts["r0-pack-0"], work.run.runtime).tokens == said["corpus_tokens"]
    assert forecast(artifacts["r1-pack"], work.run.runtime).tokens == 0
