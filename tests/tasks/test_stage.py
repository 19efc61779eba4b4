"""A stage is done once, is found again, and leaves nothing half-done."""

import json
import threading
from pathlib import Path

import pytest
from servers import Server

from configs import Runtime
from configs.recipes import Ingest, Optimizer, Pretrain, Source, Tokenizer
from storage import Store, open_store
from tasks.launch import StageDied, StageFailed, stop_all
from tasks.stage import MOST_DEATHS, Made, Stage, produce

WORLD = Source(world="documents", count=200)


def _stage(count: int = 20, **source: object) -> Stage:
    recipe = Ingest(rows="prompts", sources=(Source(**(source or {"world": "prompts"}), count=count),))
    return Stage("prompts", "ingest", "rows", 1, recipe, device=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def test_second_time_nothing_is_computed(store: Store) -> None:
    events: list[str] = []
    first = produce(_stage(), store, Runtime(), listen=lambda label, event: events.append(event["event"]))
    count = len(events)
    again = produce(_stage(), store, Runtime(), listen=lambda label, event: events.append(event["event"]))
    assert (first.cached, again.cached) == (False, True)
    assert count > 0 and len(events) == count
    assert first.manifest.root == again.manifest.root


def test_runtime_does_not_rename(store: Store) -> None:
    produce(_stage(), store, Runtime())
    assert produce(_stage(), store, Runtime(threads=2, train_rows=3)).cached


def test_failed_work_leaves_no_result_and_says_why(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": 3}\n' * 5)
    with pytest.raises(StageFailed) as caught:
        produce(_stage(path=str(file), format="prompt-response"), store, Runtime())
    assert "\n" not in str(caught.value) and "p.jsonl" in str(caught.value)
    assert store.manifest(_stage(path=str(file), format="prompt-response").ref) is None


@pytest.mark.parametrize("where", ["folder", pytest.param("moto", marks=pytest.mark.s3)])
def test_the_evidence_of_failed_work_is_where_the_message_says(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    if where == "moto":
        server: Server = request.getfixturevalue("moto")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        store = open_store(server.url())
    stop_all()  # the warm server keeps the environment it was started with
    request.addfinalizer(stop_all)
    documents = Stage("documents", "ingest", "rows", 1, Ingest(rows="documents", sources=(WORLD,)), device=False)
    wild = Optimizer(learning_rate=1e30, warmup=0.0, min_warmup_steps=0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "max_position_embeddings": 64}  # fmt: skip
    recipe = Pretrain(
        architecture=shape,
        tokenizer=Tokenizer(vocab_size=300),
        sequence_length=16,
        batch_size=4,
        steps=20,
        optimizer=wild,
    )
    inputs = {"documents": produce(documents, store, Runtime()).manifest.ref}
    with pytest.raises(StageFailed, match="not finite; its rows are in ") as failed:
        produce(Stage("base", "pretrain", "model", 1, recipe, inputs), store, Runtime())
    place = str(failed.value).split("its rows are in ")[1].split("; ")[0]
    text = Path(place).read_bytes() if where == "folder" else store.get(place.removeprefix(f"{store.url}/"))
    assert json.loads(text)["rows"]


def test_altered_bytes_are_made_anew_with_the_same_result(store: Store) -> None:
    made = produce(_stage(), store, Runtime())
    folder = store.fetch(made.manifest.ref)
    rows = folder / "rows.parquet"
    rows.chmod(0o644)
    rows.write_bytes(rows.read_bytes()[:-1])
    again = produce(_stage(), store, Runtime())
    assert not again.cached
    assert again.manifest.root == made.manifest.root


def test_two_that_want_the_same_compute_it_once(tmp_path: Path) -> None:
    computed: list[str] = []
    made: list[Made] = []

    def want() -> None:
        store = open_store(tmp_path / "store")
        made.append(produce(_stage(2000), store, Runtime(lease_ttl=20, lease_beat=0.2), listen=lambda *_: None))
        if not made[-1].cached:
            computed.append(made[-1].manifest.attempt)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert sum(not m.cached for m in made) == 1
    assert len({m.manifest.root for m in made}) == 1


def test_manifest_says_what_made_it_and_hides_nothing_of_speed_in_the_name(store: Store) -> None:
    made = produce(_stage(), store, Runtime(threads=2))
    record = made.manifest.record
    assert record["identity"]["recipe"]["sources"][0]["count"] == 20
    assert record["numerics"]["threads"] == 2 and "threads" not in json.dumps(record["identity"])
    assert record["seconds"] > 0 and record["versions"]["torch"].startswith("2.13.0")
    assert all(not name.startswith("_beside") for name in made.manifest.files)


def test_cancelled_work_stops(store: Store) -> None:
    with pytest.raises(StageFailed, match="cancelled"):
        produce(_stage(200_000), store, Runtime(), cancelled=lambda: True)


def test_deaths_in_a_row_without_progress_end_in_an_error_and_the_next_run_tries_again(store: Store) -> None:
    stage = _stage()
    for _ in range(MOST_DEATHS):
        lease = store.lease(stage.ref.key, ttl=0.1, beat=60)
        assert lease is not None
        lease.begin(0)
        lease._stop.set()  # dies without a word
    with pytest.raises(StageFailed, match=f"{MOST_DEATHS} runs in a row died at step 0"):
        produce(stage, store, Runtime(lease_ttl=1))
    assert store.manifest(stage.ref) is None
    assert not produce(stage, store, Runtime(lease_ttl=1)).cached


def test_save_points_of_a_run_killed_right_after_its_commit_are_dropped_by_the_next(
    store: Store, tmp_path: Path
) -> None:
    made = produce(_stage(), store, Runtime())
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "state.json").write_text("{}")
    store.save_points(made.manifest.ref).save(3, tmp_path / "left", {})
    assert store.list("savepoints")
    assert produce(_stage(), store, Runtime()).cached
    assert store.list("savepoints") == []


@pytest.mark.parametrize(
    ("error", "again"),
    [(StageDied("v0: its process ended by signal 9"), True), (StageFailed("v0: loss nan at step 3"), False)],
)
def test_only_a_killed_process_is_tried_again_by_itself(error: StageFailed, again: bool) -> None:
    from prefect.states import Failed

    from tasks.perform import died

    assert died(None, None, Failed(data=error)) is again


def test_a_busy_server_is_asked_again_for_a_device_and_a_missing_limit_is_not() -> None:
    import httpx

    from tasks.perform import busy

    def caused_by(cause: BaseException | None) -> RuntimeError:
        error = RuntimeError("Unable to acquire concurrency slots on ['roundhouse-device-1']")
        error.__cause__ = cause
        return error

    request = httpx.Request("POST", "http://server/api")
    answers = {code: httpx.HTTPStatusError("x", request=request, response=httpx.Response(code)) for code in (503, 422)}
    assert busy(caused_by(answers[503])) and busy(caused_by(httpx.ReadTimeout("slow")))
    assert not busy(caused_by(answers[422])) and not busy(caused_by(None))
