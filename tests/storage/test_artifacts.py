"""Artifacts: finished means finished, the first committer wins, damage is named and never used."""

import json
from pathlib import Path

import pytest
from scenario import on_a_folder, over

from storage import (
    AlreadyExists,
    Corrupt,
    LeaseLost,
    NotFound,
    Ref,
    Refused,
    StorageError,
    Store,
    open_store,
    sha256_file,
)

REF = Ref("sft", "v0", "0123456789abcdef")
FILES = {"model.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}" + b"weights", "config/a.json": b'{"a": 1}'}


def write(draft, files=FILES):
    for name, data in files.items():
        path = draft.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return draft


def commit(store: Store, ref: Ref = REF, files=FILES, record=None, lease=None):
    return write(store.draft(ref), files).commit(record or {"recipe": {"lr": 0.1}}, lease)


def test_nothing_is_there_before_commit_and_all_after(store):
    draft = write(store.draft(REF))
    assert store.manifest(REF) is None
    with pytest.raises(NotFound, match="sft/v0-0123456789abcdef"):
        store.fetch(REF)
    made = draft.commit({"recipe": {"lr": 0.1}})
    found = store.manifest(REF)
    assert found == made
    assert found.ref == REF and found.record == {"recipe": {"lr": 0.1}}
    folder = store.fetch(REF)
    assert {name: (folder / name).read_bytes() for name in found.files} == FILES
    assert found.bytes == sum(map(len, FILES.values()))
    assert found.files["config/a.json"].sha256 == sha256_file(folder / "config/a.json")
    assert store.warnings == []


def test_root_depends_on_result_files_only(store):
    one = commit(store, Ref("a", "x", "0" * 16), record={"seconds": 1.5})
    beside = write(store.draft(Ref("b", "y", "1" * 16)), {**FILES, "_beside/log.txt": b"took long"})
    two = beside.commit({"seconds": 99})
    assert one.root == two.root
    assert two.beside == ("_beside/log.txt",) and "_beside/log.txt" not in two.files
    assert commit(store, Ref("c", "z", "2" * 16), {"config/a.json": b"{}"}).root != one.root


def test_the_first_committer_wins_and_the_other_leaves_nothing(store):
    first, second = write(store.draft(REF)), write(store.draft(REF), {"other.json": b"{}"})
    won = first.commit({"who": 1})
    assert second.commit({"who": 2}) == won
    assert store.manifest(REF).record == {"who": 1}
    assert not [key for key in store.list(f"artifacts/{REF.key}") if "other" in key]


def damage(store, key, data):
    store.delete(key) if data is None else store.put(key, data)


@over("kind", ["truncated", "gone", "empty", "grown"])
def test_a_hit_needs_every_file_with_its_size(store, kind):
    made = commit(store)
    key = f"artifacts/{REF.key}/{made.attempt}/config/a.json"
    data = store.get(key)
    damage(store, key, {"truncated": data[:-1], "gone": None, "empty": b"", "grown": data + b"x"}[kind])
    assert store.manifest(REF) is None
    assert "config/a.json" in store.warnings[0] and "\n" not in store.warnings[0]
    with pytest.raises(Corrupt, match=r"config/a\.json"):
        store.fetch(REF)
    with store.lease(REF.key) as lease:
        again = commit(store, lease=lease)
    assert store.manifest(REF) == again != made
    assert (store.fetch(REF) / "config/a.json").read_bytes() == FILES["config/a.json"]
    assert store.list(f"quarantine/{REF.key}")


def test_a_flipped_bit_is_found_by_the_reader_and_then_counts_as_not_finished(store):
    made = commit(store)
    key = f"artifacts/{REF.key}/{made.attempt}/model.safetensors"
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    assert store.manifest(REF) == made  # same size: a lookup does not read files
    with pytest.raises(Corrupt, match=r"model\.safetensors has SHA-256"):
        store.fetch(REF)
    assert store.manifest(REF) is None
    with pytest.raises(Corrupt, match="lease"):
        commit(store)
    with store.lease(REF.key) as lease:
        again = commit(store, lease=lease)
    assert store.manifest(REF) == again
    assert (store.fetch(REF) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not store.list(f"artifacts/{REF.key}/{made.attempt}")  # its holder cleaned the bad attempt away


def test_bytes_that_came_back_count_again_once_a_writer_has_looked(store):
    """A backup restored the file, or the wire had altered every read: the mark of the reader must not outlive it."""
    made = commit(store)
    key = f"artifacts/{REF.key}/{made.attempt}/model.safetensors"
    good = store.get(key)
    store.put(key, good[:-1] + b"X")
    with pytest.raises(Corrupt):
        store.fetch(REF)
    store.put(key, good)
    assert store.manifest(REF) is None  # the reader's mark
    with store.lease(REF.key) as lease:
        assert commit(store, lease=lease) == made
    assert store.manifest(REF) == made and (store.fetch(REF) / "model.safetensors").read_bytes() == good


@pytest.mark.parametrize("name", ["a.safetensors", "evil.pkl", "config/b.json"])
def test_a_file_that_no_manifest_names_is_refused(store, name):
    """The engine looks for files by pattern: what was put there later would be read as part of the result."""
    commit(store)
    folder = store.fetch(REF)
    (folder / ".part-0123456789abcdef").write_bytes(b"a fetch was killed")
    (folder / "_beside").mkdir(exist_ok=True)
    (folder / "_beside/log.txt").write_text("more")
    assert store.fetch(REF) == folder
    (folder / name).write_bytes(b"planted")
    with pytest.raises(Refused, match=f"{name}: not part of this result"):
        store.fetch(REF)
    (folder / name).unlink()
    assert store.fetch(REF) == folder


def manifest_damages(data: bytes, other: bytes):
    yield "empty", b""
    yield "truncated", data[: len(data) // 2]
    yield "zeros", bytes(len(data))
    yield "garbage", bytes(range(256)) * 3
    yield "appended", data + b"x"
    yield "flipped", data.replace(b'"size": 8', b'"size": 9')
    yield "swapped", other
    yield "not an object", b"[]"
    yield "deep", b'{"a":' * 5000
    yield "NaN", data.replace(b"0.1", b"NaN")
    yield "twice", b'{"v": 1, "v": 1}'
    forged = json.loads(data)
    forged["files"] = {"../../etc/passwd": {"sha256": "0" * 64, "size": 1}}
    yield "traversal", json.dumps(forged).encode()


def test_a_damaged_manifest_is_never_used(store):
    made = commit(store)
    commit(store, Ref("sft", "v1", "0" * 16))
    other = store.get(f"artifacts/sft/v1-{'0' * 16}/manifest.json")
    location = f"artifacts/{REF.key}/manifest.json"
    good, tried = store.get(location), 0
    for name, data in manifest_damages(good, other):
        assert data != good, name
        store.put(location, data)
        store.warnings.clear()
        assert store.manifest(REF) is None, name
        assert location in store.warnings[0] and len(store.warnings[0]) < 500, name
        tried += 1
    assert tried == 12
    with store.lease(REF.key) as lease:
        again = commit(store, lease=lease)
    assert store.manifest(REF) == again and again.files == made.files


@on_a_folder
@pytest.mark.parametrize("name", ["model.pt", "a/b.BIN", "x.pkl", "x.ckpt", "x.joblib", "x.msgpack", "x.h5", "x.npy"])
def test_open_formats_are_refused_by_extension(store, name):
    with pytest.raises(Refused, match="can run code"):
        commit(store, files={name: b"{}"})
    assert store.manifest(REF) is None


@on_a_folder
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b"\x80\x04\x95abc"),
        ("a.txt", b"PK\x03\x04abc"),
        ("model.safetensors", b"\x80\x04\x95abcdefghijk"),
        ("rows.parquet", b"PAR1not finished"),
    ],
)
def test_open_formats_are_refused_by_content(store, name, data):
    with pytest.raises(Refused):
        commit(store, files={name: data})


def test_a_safetensors_header_of_640_bytes_is_not_a_pickle(store):
    header = b"{" + b" " * 638 + b"}"
    assert len(header) == 0x280
    commit(store, files={"model.safetensors": (640).to_bytes(8, "little") + header})
    assert (store.fetch(REF) / "model.safetensors").read_bytes()[:2] == b"\x80\x02"


def test_a_pickle_planted_behind_a_valid_manifest_is_refused_on_fetch(store):
    from storage.manifest import FileInfo, Manifest, encode

    payload = b"\x80\x04\x95evil"
    store.put(f"artifacts/{REF.key}/planted/model.bin", payload)
    import hashlib

    info = FileInfo(hashlib.sha256(payload).hexdigest(), len(payload))
    for name in ("model.bin", "model.json"):
        store.put(f"artifacts/{REF.key}/planted/{name}", payload)
        store.put(f"artifacts/{REF.key}/manifest.json", encode(Manifest(REF.key, "planted", {name: info})))
        with pytest.raises(Refused, match=name):
            store.fetch(REF)


@on_a_folder
@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_are_not_stored(store, tmp_path, link):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("x")
    draft = write(store.draft(REF))
    (draft.path / "link").symlink_to(tmp_path / "secret" / ("key.txt" if link == "file" else ""))
    with pytest.raises(StorageError, match="only regular files"):
        draft.commit({})


def test_an_empty_draft_is_an_error_and_a_discarded_one_leaves_nothing(store):
    with pytest.raises(StorageError, match="nothing to commit"):
        store.draft(REF).commit({})
    draft = write(store.draft(REF))
    draft.discard()
    assert not draft.path.exists()
    assert store.manifest(REF) is None


def test_a_record_that_json_cannot_hold_stops_before_anything_is_published(store):
    for record in ({"x": float("nan")}, {"x": object()}, {1: 2}, {"x": "\ud800"}):
        with pytest.raises(Refused):
            commit(store, record=record)
    assert store.manifest(REF) is None


def test_the_loaded_copy_is_checked_again_every_time(store):
    commit(store)
    folder = store.fetch(REF)
    assert (store.backend.folder or store.cache).stat().st_mode & 0o777 == 0o700
    (folder / "config/a.json").write_bytes(b'{"a": 2}')
    if store.url.startswith("file:"):
        with pytest.raises(Corrupt, match=r"a\.json"):
            store.fetch(REF)
    else:
        assert (store.fetch(REF) / "config/a.json").read_bytes() == FILES["config/a.json"]


def test_two_stores_see_one_truth(store, another):
    assert another.manifest(REF) is None
    made = commit(store)
    assert another.manifest(REF) == made
    with pytest.raises(AlreadyExists):
        another.create(f"artifacts/{REF.key}/manifest.json", b"mine")


def test_a_folder_store_keeps_files_where_they_were_written(tmp_path):
    store = open_store(tmp_path / "s")
    draft = write(store.draft(REF))
    made = draft.commit({})
    assert draft.path == store.fetch(REF) == tmp_path / "s" / "artifacts" / REF.key / made.attempt
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert not list(Path(tmp_path).rglob(".part-*"))


class Fence:
    """Holds for a number of checks, then is lost: the take-over comes in the middle of a commit."""

    def __init__(self, checks):
        self.left = checks

    def check(self):
        self.left -= 1
        if self.left < 0:
            raise LeaseLost("taken over")


def test_a_lease_lost_during_the_commit_publishes_nothing(store):
    for checks in (0, 1):
        with pytest.raises(LeaseLost):
            commit(store, lease=Fence(checks))
        assert store.manifest(REF) is None
    made = commit(store, lease=Fence(2))
    store.put(f"artifacts/{REF.key}/manifest.json", b"torn")
    with pytest.raises(LeaseLost):
        commit(store, lease=Fence(2))  # found the torn one, and was replaced before it could set it aside
    assert store.get(f"artifacts/{REF.key}/manifest.json") == b"torn"
    assert commit(store, lease=Fence(9)).files == made.files


def test_a_writer_that_publishes_late_leaves_its_successor_alone(tmp_path):
    """Frozen between the look at its lease and the write of the manifest: the first committer wins, and both end well."""
    late, store = open_store(tmp_path / "store"), open_store(tmp_path / "store")
    first = write(late.draft(REF))
    old = late.lease(REF.key, ttl=0.5, beat=0.1)
    assert old is not None
    old._stop.set()  # no beats any more
    old._thread.join()
    real, box = late.backend.create, {}

    def create(key, data):
        if key.endswith("manifest.json") and not box:
            box["lease"], box["draft"] = store.lease(REF.key, ttl=0.5, beat=0.1), write(store.draft(REF))
        return real(key, data)

    late.backend.create = create
    made = first.commit({"by": "late"}, old)
    assert box["draft"].path.is_dir()
    with box["lease"] as lease:
        assert box["draft"].commit({"by": "successor"}, lease) == made
    assert store.manifest(REF) == made and store.fetch(REF).name == made.attempt


def test_a_draft_that_was_cleaned_away_finds_the_result_that_is_there(tmp_path):
    store = open_store(tmp_path / "store")
    draft = write(store.draft(REF))
    made = commit(store)
    for path in sorted(draft.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert draft.commit({}) == made
