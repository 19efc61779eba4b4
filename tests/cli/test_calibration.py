"""What finished stages tell about the cost of others: fixed part and rate, memory beyond arithmetic, the campaign in small."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli.forecast
import cli.reads
from cli.calibration import Cost, _cost_for, cost_of, costs_of, estimate, in_small, in_time, known_costs
from cli.costs import Lengths, sizes_of
from cli.forecast import Forecast, forecast
from cli.reads import Reads, architecture_of, expected, inputs_of, parts_of
from configs import Campaign, load
from configs.load import FOLDER, check, resolve
from configs.runtime import Runtime
from engine.evaluate import SMOKE
from engine.sample import SHARD_ROWS
from flows.rounds import align
from storage import open_store
from tasks import Artifact, Run


def micro(**changes: Any) -> Campaign:
    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    for place, value in changes.items():
        section, key = place.rsplit("__", 1)
        target = raw
        for part in section.split("__"):
            target = target[part]
        target[key] = value
    return resolve(check(raw, "micro"), require_data=True)


def laid_out(campaign: Campaign, store: Path) -> Run:
    run = Run(campaign, open_store(store), campaign.runtime, mode="plan")
    align(run)
    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store in which micro's base is finished: 12 steps in 10 s of processor time, of which the last 11 took 5.5 s."""
    run = laid_out(micro(), tmp_path / "store")
    base = run.artifacts["base"]
    draft = run.store.draft(base.ref)
    (draft.path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + b"\0" * 90)
    (draft.path / "metrics.jsonl").write_text("{}\n" * 12)
    (draft.path / "card.json").write_text("x" * 40)
    record = {
        "numerics": run.runtime.numerics(), "cpu_seconds": 10.0, "seconds": 20.0, "peak_bytes": 500_000_000,
        "pace": {"done": 11, "of": 12, "cpu_seconds": 5.5, "seconds": 11.0},
        "summary": {"steps": 12, "rows": 96, "tokens": 6144, "sequences": 96, "sequence_tokens": 6240, "squares": 96 * 65**2},
    }  # fmt: skip
    draft.commit(record)
    return tmp_path / "store"


def test_a_stage_costs_a_fixed_part_and_a_rate(store: Path) -> None:
    """0.5 s a step: 12 steps are 6 s, so 4 s are fixed; 24 steps take 4 + 12 = 16 s, and on the clock 8 + 24 = 32 s."""
    costs = costs_of(laid_out(micro(), store))
    assert list(costs) == ["pretrain", "stage base"]
    twice = laid_out(micro(base__pretrain__steps=24), store)
    found = estimate(twice.artifacts["base"], twice.runtime, costs)
    assert found.cpu_seconds == pytest.approx(16.0) and found.seconds == pytest.approx(32.0)
    assert found.steps == 24 and found.tokens == 24 * 8 * 64


def test_a_stage_of_the_same_name_says_more_than_others_of_its_kind(store: Path) -> None:
    run = laid_out(micro(), store)
    costs = costs_of(run)
    slow = {"pretrain": replace(costs["pretrain"], fixed=1000.0)}
    assert estimate(run.artifacts["base"], run.runtime, {**costs, **slow}).cpu_seconds == pytest.approx(10.0)
    assert estimate(run.artifacts["base"], run.runtime, slow).cpu_seconds == pytest.approx(1006.0)


@pytest.mark.parametrize(("seconds", "rate"), [(0.4, 0.0), (10.0, 10.0)])
def test_a_short_stage_that_told_no_pace_is_all_start(tmp_path: Path, seconds: float, rate: float) -> None:
    run = laid_out(micro(), tmp_path / "store")
    documents = run.artifacts["documents"]
    draft = run.store.draft(documents.ref)
    (draft.path / "rows.jsonl").write_text("{}\n")
    draft.commit({"numerics": run.runtime.numerics(), "cpu_seconds": seconds, "seconds": seconds, "peak_bytes": 1,
                  "summary": {"rows": 10}})  # fmt: skip
    documents = laid_out(micro(), tmp_path / "store").artifacts["documents"]
    cost, amount = cost_of(documents, run), forecast(documents, run.runtime).amount
    assert cost is not None
    assert (cost.fixed, cost.rate * amount) == pytest.approx((seconds - rate, rate))


def test_memory_and_bytes_are_corrected_by_what_was_seen(store: Path) -> None:
    run = laid_out(micro(), store)
    costs, plain = costs_of(run), forecast(run.artifacts["base"], run.runtime)
    found = estimate(run.artifacts["base"], run.runtime, costs)
    assert found.memory == pytest.approx(500_000_000, rel=0.001)
    assert found.stored == 100 + 36 + 40  # as the finished stage has it
    twice = laid_out(micro(base__pretrain__steps=24), store)
    assert estimate(twice.artifacts["base"], twice.runtime, costs).stored == 100 + 72 + 40
    assert plain.memory < 500_000_000


def test_other_numerics_tell_nothing(store: Path) -> None:
    run = laid_out(micro(runtime__threads=2), store)
    assert cost_of(run.artifacts["base"], run) is None


def test_without_a_measurement_there_is_no_time_unless_the_device_is_known(store: Path) -> None:
    run = laid_out(micro(), store.parent / "empty")
    assert estimate(run.artifacts["base"], run.runtime, {}).seconds is None
    known = run.runtime.model_copy(update={"device_flops": 1e9, "device_price": 3600.0})
    found = estimate(run.artifacts["base"], known, {})
    assert found.seconds == pytest.approx(found.flops / 1e9) and found.money == pytest.approx(found.seconds)


def test_the_clock_shows_the_longest_chain_or_all_work_over_the_slots(store: Path) -> None:
    """Every stage 10 s: the chain of micro's longest path, or all stages over two slots, whichever is more."""
    run = laid_out(micro(), store.parent / "empty")
    one = Forecast(0, 0, 1, 0, 0, 0.0, 0, 0, cpu_seconds=5.0, seconds=10.0)
    depth: dict[str, int] = {}
    for label, artifact in run.artifacts.items():
        depth[label] = 1 + max((depth[a.label] for a in artifact.upstream if a.label in depth), default=0)
    found = in_time(run, dict.fromkeys(run.artifacts, one))
    count = len(run.artifacts)
    assert found == (max(10.0 * max(depth.values()), 10.0 * count / 2), 5.0 * count)


def test_the_campaign_in_small_keeps_model_batches_and_limits() -> None:
    tiny = load("tiny")
    small = in_small(tiny, tiny.runtime)
    assert small.base.pretrain and tiny.base.pretrain
    assert small.base.pretrain.architecture == tiny.base.pretrain.architecture
    assert small.limits == tiny.limits and small.sft.batch_size == tiny.sft.batch_size
    assert [r.method for r in small.rounds] == ["rejection", "ppo"]
    assert small.base.pretrain.steps == 40 and small.sft.max_steps == 16
    assert small.rounds[1].online and small.rounds[1].online.iterations == 3
    assert small.sample.prompts * small.sample.k >= 2 * tiny.runtime.sample_rows  # at least two batches
    assert max(s.count or 0 for s in small.data.documents) == 2000


def test_a_campaign_without_a_calibration_knows_its_own_stages(store: Path) -> None:
    assert isinstance(known_costs(laid_out(micro(), store))["pretrain"], Cost)


def test_what_reads_and_scores_counts_every_pass(tmp_path: Path) -> None:
    """By hand: an evaluation samples, and policy and reference read; every reward model scores every version's response."""
    run = laid_out(micro(), tmp_path / "store")
    for label, artifact in run.artifacts.items():
        if artifact.stage.work not in ("evaluate", "compare", "matrix", "certify"):
            continue
        lengths = Lengths.fixed(10, 5)
        architecture = architecture_of(artifact)
        assert architecture is not None
        size = sizes_of(architecture)
        generate, score = size.forward(lengths, 5), replace(size, head=size.hidden).forward(lengths, 1)
        models, earlier = (len(inputs_of(artifact, role)) for role in ("rewards", "earlier"))
        wanted = {
            "evaluate": generate * (3 * 7 + 6) + score * models * (7 * (1 + earlier) + 6),
            "compare": score * 7 * models,
            "matrix": score * 7 * models,
            "certify": score * (14 * 2 + 14 + 7 * 14 + 1),  # by both models; the probe set; seven layouts and a filler
        }[artifact.stage.work]
        sequences = 2 if artifact.stage.work == "certify" else 1
        found = forecast(artifact, run.runtime, Reads(7, lengths, sequences))
        assert found.flops == pytest.approx(wanted), label
        assert found.tokens == (65 if artifact.stage.work == "evaluate" else 0)
    assert len(SMOKE) == cli.forecast.SMOKE
    versions = len(inputs_of(run.artifacts["compare"], "versions"))
    for label in ("compare", "matrix"):  # the matrix is also given samples, of which it takes the scores that are there
        assert versions > 1 and expected(run.artifacts[label]).rows == versions * run.campaign.evaluate.prompts


def test_adapters_learn_with_a_reward_models_head(tmp_path: Path) -> None:
    """By hand, tables not tied: rank 3 times inputs and outputs of the layers of two blocks; a reward head of 32 weights."""
    lora = {"rank": 3, "alpha": 8.0}
    changes: dict[str, Any] = {"base__pretrain__architecture__tie_word_embeddings": False, "sft__lora": lora}
    run = laid_out(micro(**changes, rewards__helpfulness__lora=lora), tmp_path / "store")
    layers = 2 * (64 + 48 + 48 + 64 + 96 + 96 + 96)  # q, k, v, o, gate, up, down
    trained = {name: forecast(artifact, run.runtime).trained for name, artifact in run.artifacts.items()}
    assert (trained["v0"], trained["r1-helpfulness"]) == (3 * layers, 3 * layers + 32)


def test_under_zero_3_an_online_stage_holds_whole_copies_too(tmp_path: Path) -> None:
    """Of policy and critic, in fp32; the ones that learn are divided."""
    run = laid_out(micro(), tmp_path / "store")
    online = next(a for a in run.artifacts.values() if a.stage.work == "online")
    size = forecast(online, run.runtime).parameters
    memory = {zero: forecast(online, Runtime(launcher="deepspeed", processes=2, zero=zero)).memory for zero in (2, 3)}
    assert memory[2] - memory[3] == 2 * (4 * size - 4 * size // 2) - 2 * 4 * size


def test_the_warm_up_before_the_first_word_on_progress_is_no_part_of_the_pace(tmp_path: Path) -> None:
    """Three iterations in 6 s; before them a batch of the warm-up: 8 rollouts, then 20 value steps on 4 of them."""
    run = laid_out(micro(), tmp_path / "store")
    draft = run.store.draft(run.artifacts["v2"].ref)
    (draft.path / "card.json").write_text("{}")
    draft.commit({"numerics": run.runtime.numerics(), "cpu_seconds": 20.0, "seconds": 20.0, "peak_bytes": 1,
                  "pace": {"done": 3, "of": 3, "cpu_seconds": 6.0, "seconds": 6.0},
                  "summary": {"warmup_batches": 1}})  # fmt: skip
    run = laid_out(micro(), tmp_path / "store")
    online, lengths = run.artifacts["v2"], Lengths.fixed(10, 5)
    architecture = architecture_of(online)
    assert architecture is not None
    size = sizes_of(architecture)
    critic = replace(size, head=size.hidden)
    rolled = 3 * size.forward(lengths, 5) + critic.forward(lengths, 5) + 2 * critic.forward(lengths, 1)
    warm = 8 * rolled + 20 * 4 * critic.learning(lengths, 5)
    iterations = 3 * 8 * (rolled + size.learning(lengths, 5) + critic.learning(lengths, 5))
    found = forecast(online, run.runtime, Reads(8, lengths, beside=(8, lengths)))
    assert found.flops == pytest.approx(warm + iterations) and found.opening == pytest.approx(warm)
    cost = cost_of(online, run, lengths)
    assert cost is not None
    assert cost.rate == pytest.approx(6.0 / iterations) and cost.fixed == pytest.approx(
        20.0 - cost.rate * (warm + iterations)
    )


def test_a_reward_model_scores_its_held_out_pairs_too(tmp_path: Path) -> None:
    run, lengths = laid_out(micro(), tmp_path / "store"), Lengths.fixed(10, 5)
    reward = run.artifacts["r1-helpfulness"]
    with_pairs, without = (forecast(reward, run.runtime, Reads(7, lengths, 2, (n, lengths))).flops for n in (6, 0))
    architecture = architecture_of(reward)
    assert architecture is not None
    size = sizes_of(architecture)
    assert with_pairs - without == pytest.approx(6 * replace(size, head=size.hidden).forward(lengths, 1))


def test_work_like_it_tells_the_rate_only_where_both_are_by_flops(store: Path) -> None:
    """What no model did takes so long a row, which says nothing about FLOPs."""
    run = laid_out(micro(), store)
    base, pretrained = run.artifacts["base"], costs_of(run)["pretrain"]
    stage = replace(base.stage, work="measure", kind="rows")
    one = Artifact(stage, None, None, base.upstream)
    assert _cost_for(one, {"score": replace(pretrained, by_flops=False)}) is None
    found = _cost_for(one, {"score": replace(pretrained, by_flops=False), "evaluate": pretrained})
    assert found == replace(pretrained, extra=0.0, row=0.0)  # its files are others
    assert (
        _cost_for(Artifact(replace(stage, work="continuing", kind="model"), None, None), {"pretrain": pretrained})
        == pretrained
    )


def test_files_of_samples_are_counted(tmp_path: Path) -> None:
    """Two shards as asked for; 3000 prompts x 4 are at most 4096 a shard, so three; each has its schema, scored shards too."""
    assert cli.reads.SHARD_ROWS == SHARD_ROWS
    few, many = (laid_out(micro(sample__prompts=n, data__prompts=prompts), tmp_path / "store") for n, prompts in
                 ((16, [{"world": "prompts", "count": 80}]), (3000, [{"world": "prompts", "count": 9000}])))  # fmt: skip
    assert [parts_of(run.artifacts[f"r1-{work}"]) for run in (few, many) for work in ("sample", "score")] == [
        2,
        2,
        3,
        3,
    ]
    cost = Cost(0.0, 0.0, 0.0, 0.0, 0.0, extra=2000.0, row=10.0, parts=2.0)
    found = estimate(many.artifacts["r1-sample"], many.runtime, {"sample": cost})
    assert found.rows == 12_000 and found.stored == 3 * 1000 + 12_000 * 10
