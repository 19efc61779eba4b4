"""Malformed input: our own error in one line or a value that is whole; never a traceback, never a partial commit."""

import hashlib
import random
import time

import pytest
from faultproxy import Proxy

from benchmarks.reliability.mutate import cases, mutated_bytes
from storage import Corrupt, Ref, StorageError, Store, open_store
from storage.lease import current_epoch
from storage.manifest import FileInfo, Manifest, decode, encode
from storage.names import check_key
from storage.rows import read_rows, write_rows

REF = Ref("sft", "v0", "0123456789abcdef")
DIGEST = "fedcba9876543210"
INFO = FileInfo(hashlib.sha256(b"x").hexdigest(), 1)
GOOD = Manifest(
    REF.key, "20260101T000000-abc", {"a.json": INFO, "b/c.json": INFO}, {"lr": 0.1, "in": [REF.key]}, ("_beside/l",)
)


def test_ten_thousand_manifests(tally):
    good = encode(GOOD)
    assert decode(good, REF.key, "x") == GOOD
    refused = accepted = 0
    slowest = 0.0
    for data in cases(good, 10_000, seed=1):
        start = time.perf_counter()
        try:
            found = decode(data, REF.key, "here")
        except Corrupt as err:
            refused += 1
            assert "\n" not in str(err) and len(str(err)) < 400 and "here" in str(err)
        else:
            accepted += 1  # well-formed and signed: a hash is no signature
            assert found.key == REF.key and decode(encode(found), REF.key, "x") == found
            for name in (*found.files, *found.beside, found.attempt):
                check_key(name)
        slowest = max(slowest, time.perf_counter() - start)
    tally(
        "malformed manifests",
        refused + accepted,
        f"{accepted} of them whole and signed again, slowest {slowest * 1000:.0f} ms",
    )
    assert refused + accepted == 10_000 and refused > 8_000 and slowest < 2


def try_all(store: Store, location: str, good: bytes, act, count: int, seed: int) -> tuple[int, int]:
    """Put mutants at `location` and act; return how often that ended in our error, and how often not."""
    path = store.backend.folder / location
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = fine = 0
    for data in cases(good, count, seed):
        path.write_bytes(data)
        try:
            act()
            fine += 1
        except StorageError as err:
            errors += 1
            assert "\n" not in str(err) and len(str(err)) < 700
    assert errors + fine == count
    return errors, fine


@pytest.fixture
def folder(tmp_path):
    return open_store(tmp_path / "store", cache=tmp_path / "cache")


def test_lookups_and_fetches_of_mutants(folder):
    (folder.backend.folder / "artifacts" / REF.key / GOOD.attempt / "b").mkdir(parents=True)
    for name in GOOD.files:
        (folder.backend.folder / "artifacts" / REF.key / GOOD.attempt / name).write_bytes(b"x")
    location = f"artifacts/{REF.key}/manifest.json"
    errors, _ = try_all(folder, location, encode(GOOD), lambda: folder.manifest(REF), 300, seed=2)
    assert errors == 0  # a mutant is not a finished artifact, and says why
    assert folder.warnings
    errors, _ = try_all(folder, location, encode(GOOD), lambda: folder.fetch(REF), 300, seed=3)
    assert errors > 200
    assert not (folder.backend.folder.parent / "etc").exists()


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_save_points_of_mutants(folder, tally, count):
    points = folder.save_points(REF)
    home = points.folder()
    (home / "s.json").write_text("1")
    points.save(3, home, {"rng": [1]})
    location = f"savepoints/{REF.key}/000001.json"
    good = folder.get(location)

    def act():
        found = folder.save_points(REF).latest()
        assert found is None or (type(found.step) is int and (found.path / "s.json").read_text() == "1")

    errors, _ = try_all(folder, location, good, act, count, seed=4)
    tally("malformed save points", count, f"{errors} refused, the others passed over")
    assert errors < count / 15  # only a signed manifest that names an open format


def test_campaigns_notes_aliases_and_leases_of_mutants(folder):
    record = folder.campaign("tiny", DIGEST)
    record.create({"seed": 1})
    record.note("a", REF)
    record.note("b", Ref("sft", "v1", "0" * 16))
    note = folder.list(f"campaigns/tiny-{DIGEST}")[-1]
    good = folder.get(note)
    errors, _ = try_all(folder, note, good, lambda: folder.campaign("tiny", DIGEST).notes(), 1000, seed=5)
    assert errors > 500
    body = f"campaigns/tiny-{DIGEST}.json"
    try_all(folder, body, folder.get(body), lambda: folder.campaign("tiny", DIGEST).body(), 500, seed=6)
    folder.put_alias("best", REF)
    try_all(folder, "aliases/best.json", folder.get("aliases/best.json"), folder.aliases, 500, seed=7)
    with folder.lease("k"):
        pass
    epoch = "leases/k/000001.json"
    good = folder.get(epoch)
    folder.put("beats/k/000001.txt", b"1 step 0")

    def wait():
        looks = iter((False, True))
        assert folder.lease("k", ttl=60, until=lambda: next(looks), on_wait=lambda line: line.encode()) is None

    folder_sleep = time.sleep
    try:
        time.sleep = lambda seconds: None
        _, fine = try_all(folder, epoch, good, wait, 500, seed=8)
    finally:
        time.sleep = folder_sleep
    assert fine == 500 and current_epoch(folder.backend, "k") == 1


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_parquet_rows(tmp_path, tally, count):
    path = tmp_path / "rows.parquet"
    row = {"prompt_id": "p", "messages": [{"role": "user", "content": "Hi"}], "category": "c", "is_safety": True}
    row |= {"responses": ["a", "b"], "scores": [1.0, 2.0], "attributes": [[0.5], [1.5]], "source": "s"}
    write_rows(path, "Ranking", [row] * 5)
    good, draw, refused = path.read_bytes(), random.Random(10), 0
    for number in range(count):
        data = mutated_bytes(good, draw)
        path.write_bytes(data[:-4] + b"PAR1" if number % 2 and len(data) > 8 else data)
        try:
            for found in read_rows(path, "Ranking"):  # of a damaged name only an optional column can be left out
                assert row.keys() - {"scores", "attributes"} <= found.keys() <= row.keys()
        except StorageError as err:
            refused += 1
            assert "\n" not in str(err) and len(str(err)) < 600 and str(path) in str(err)
    tally("malformed Parquet files", count, f"{refused} refused; the rest is what a manifest's hash is for")
    assert refused > 0.9 * count


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone"], indirect=True)
@pytest.mark.parametrize("count", [120, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_answers_of_a_server(s3_server, monkeypatch, tmp_path, tally, count):
    draw = random.Random(9)
    with Proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        with open_store(s3_server.url(), cache=tmp_path) as store:
            draft = store.draft(REF)
            (draft.path / "a.json").write_text("1")
            made = draft.commit({})
            store.backend.patience = dict.fromkeys(store.backend.patience, 0.2 if count < 1000 else 0.0)
            proxy.mutate = lambda body: mutated_bytes(body, draw)
            proxy.rule = lambda *_: "mutate" if draw.random() < 0.7 else None
            outcomes = {"right": 0, "error": 0}
            number = -1
            while proxy.faults["mutate"] < count:
                number += 1
                act = (store.manifest, store.fetch, lambda ref: store.list("artifacts"))[number % 3]
                store.warnings.clear()
                try:
                    found = act(REF)
                    outcomes["right"] += 1
                    assert number % 3 != 0 or found == made or (found is None and store.warnings)
                    assert number % 3 != 1 or (found / "a.json").read_text() == "1"
                except StorageError as err:
                    outcomes["error"] += 1
                    assert "\n" not in str(err) and len(str(err)) < 700
    tally(
        "mutated answers of an S3 server", proxy.faults["mutate"], f"in {sum(outcomes.values())} operations, {outcomes}"
    )
    assert min(outcomes.values()) > count / 50
