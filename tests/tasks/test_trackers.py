"""TensorBoard files hold what the stage said, byte by byte; other trackers are asked by name and never break a stage."""

import importlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError
from configs.recipes import Ingest, Pretrain, Source
from configs.runtime import Runtime
from storage import open_store
from tasks import trackers
from tasks.stage import Stage, produce
from tasks.tensorboard import EventFile, crc32c, event, record


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43  # RFC 3720, B.4


def test_a_record_is_length_checksum_data_checksum() -> None:
    found = record(b"abc")
    assert found[:8] == b"\x03" + bytes(7) and found[12:15] == b"abc" and len(found) == 19
    rotate = lambda crc: ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
    assert struct.unpack("<I", found[8:12])[0] == rotate(crc32c(found[:8]))
    assert struct.unpack("<I", found[15:])[0] == rotate(crc32c(b"abc"))


def test_an_event_is_these_bytes() -> None:
    """wall_time 1.0; step 300 = 0xAC 0x02; summary { value { tag "kl" simple_value 0.5 } }."""
    value = b"\x0a\x02kl" + b"\x15\x00\x00\x00\x3f"
    assert (
        event(1.0, 300, {"kl": 0.5}) == b"\x09" + bytes(6) + b"\xf0\x3f" + b"\x10\xac\x02" + b"\x2a\x0b\x0a\x09" + value
    )


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Read an event file back, another way round than it is written."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body, data = data[12 : 12 + length], data[16 + length :]
        step, at = 0, 9
        assert body[0] == 0x09
        if body[at] == 0x1A:
            assert body[at + 2 :] == b"brain.Event:2"
            continue
        assert body[at] == 0x10
        at, shift = at + 1, 0
        while True:
            step |= (body[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not body[at - 1] & 0x80:
                break
        values: dict[str, float] = {}
        rest = body[at + 1 :]
        size = shift = used = 0
        while True:
            size |= (rest[used] & 0x7F) << shift
            used, shift = used + 1, shift + 7
            if not rest[used - 1] & 0x80:
                break
        rest = rest[used:]
        assert len(rest) == size
        while rest:
            value, rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
            tag = value[2 : 2 + value[1]].decode()
            (values[tag],) = struct.unpack("<f", value[-4:])
        yield step, values


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "new")
    assert not (tmp_path / "new").exists()  # a stage without a curve leaves nothing
    many = {f"metric_{i}": i / 4 for i in range(60)}
    file.write(1, many)
    file.write(200_000, {"loss": math.nan, "far": 1e300})
    (path,) = (tmp_path / "new").iterdir()
    first, second = rows_of(path)
    assert first == (1, many)
    assert second[0] == 200_000 and math.isnan(second[1]["loss"]) and second[1]["far"] == math.inf


class Kept:
    """A tracker that keeps what it is told; given in the place of a library."""

    seen: list[Any] = []  # noqa: RUF012  (one for the test)

    def __init__(self, label: str, key: str, recipe: Mapping[str, Any]) -> None:
        self.seen.append(("open", label, recipe.get("rows", "")))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step == 3:
            raise ConnectionError("the server\nis gone")
        self.seen.append((step, dict(values)))

    def close(self, done: bool) -> None:
        self.seen.append(("close", done))


def curve(tmp_path: Path, said: list[str]) -> trackers.Curve:
    return trackers.Curve(tmp_path, Runtime(trackers=("mlflow",)), "v1", "model/train-1", {}, said.append)


def test_a_tracker_is_told_of_every_row_and_left_out_once_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Kept)
    monkeypatch.setattr(Kept, "seen", [])
    said: list[str] = []
    one = curve(tmp_path, said)
    for step in (1, 2, 3, 4):
        one.write(step, {"loss": 1.0 / step})
    one.close(True)
    assert Kept.seen == [("open", "v1", ""), (1, {"loss": 1.0}), (2, {"loss": 0.5})]
    assert said == ["tracker mlflow failed (the server is gone); the stage goes on without it"]
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert [step for step, _ in rows_of(path)] == [1, 2, 3, 4]  # our own file is whole
    whole = curve(tmp_path / "whole", said)
    whole.write(1, {"loss": 1.0})
    whole.close(False)
    assert Kept.seen[-1] == ("close", False)


def test_a_stage_without_a_curve_is_no_run_to_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Kept)
    monkeypatch.setattr(Kept, "seen", [])
    curve(tmp_path, []).close(True)
    assert Kept.seen == [] and not list(tmp_path.iterdir())


def test_a_resumed_stage_begins_with_the_rows_of_its_save_point(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = trackers.Curve(tmp_path, Runtime(), "v1", "model/train-1", {}, print)
    one.known(tmp_path / "metrics.jsonl")
    one.known(tmp_path / "missing.jsonl")
    one.write(3, {"loss": 1.25})
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert list(rows_of(path)) == [(1, {"loss": 2.0}), (2, {"loss": 1.5}), (3, {"loss": 1.25})]


def test_a_missing_library_is_one_line_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"runtime\.trackers: wandb is not installed here; pip install wandb, or leave it out"
    ):
        trackers.check(Runtime(trackers=("wandb",)))
    trackers.check(Runtime())


def pretrained(root: Path, runtime: Runtime) -> tuple[Any, Path, list[dict[str, float]]]:
    """A real stage of three steps: its manifest, its folder, its curve."""
    store = open_store(root / "store")
    documents = Stage(
        "documents", "ingest", "rows", 1, Ingest(rows="documents", sources=(Source(world="documents", count=80),))
    )
    produce(documents, store, runtime)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True}  # fmt: skip
    recipe = Pretrain(architecture=small, tokenizer={"vocab_size": 300}, steps=3, batch_size=2, sequence_length=32)  # type: ignore[arg-type]
    stage = Stage("base", "pretrain", "model", 1, recipe, {"documents": documents.ref})
    made = produce(stage, store, runtime)
    folder = store.fetch(stage.ref)
    return made, folder, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_training_stage_leaves_its_event_file_beside_the_result(tmp_path: Path) -> None:
    """The curve in the store and the event file agree, and the file is not among what the digest covers."""
    made, folder, curve = pretrained(tmp_path, Runtime())
    (path,) = (folder / "_beside" / "tensorboard").iterdir()
    found = list(rows_of(path))
    assert [step for step, _ in found] == [row["step"] for row in curve] == [1, 2, 3]
    assert [values["loss"] for _, values in found] == pytest.approx([row["loss"] for row in curve], rel=1e-6)
    assert not any("tensorboard" in name for name in made.manifest.files)


def records_of(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:  # too little for a header: the next block begins
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the whole record, or its last piece
            yield whole
            whole = b""


@pytest.mark.skipif(find_spec("wandb") is None, reason="Weights & Biases is not installed: pip install wandb")
def test_weights_and_biases_hold_the_curve_of_a_real_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own library writes the run without a network; the file that it would send holds what the store holds."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    made, _, curve = pretrained(tmp_path, Runtime(trackers=("wandb",)))
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = tmp_path.rglob("run-*.wandb")  # one run: the stage without a curve is none
    steps, names = {}, set()
    for data in records_of(path):
        record = messages.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            names.add((record.run.display_name, record.run.project))
        if record.HasField("history"):
            values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            steps[values["_step"]] = values["loss"]
    assert steps == {row["step"]: pytest.approx(row["loss"]) for row in curve} and len(steps) == 3
    assert names == {("base", trackers.PROJECT)}
    assert not any("wandb" in name for name in made.manifest.files)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed: pip install mlflow-skinny")
def test_mlflow_holds_the_curve_of_a_real_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # from 3.10 on it asks for a database otherwise
    _, _, curve = pretrained(tmp_path, Runtime(trackers=("mlflow",)))
    client = importlib.import_module("mlflow").MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == trackers.PROJECT]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(row["step"], pytest.approx(row["loss"])) for row in curve]
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.runName"] == "base"
    assert run.data.params["steps"] == "3" and run.data.tags["roundhouse.key"].startswith("model/")
