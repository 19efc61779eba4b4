"""Save points: the newest whole one is found, damage falls back one, the disk does not fill."""

import pytest
from scenario import over

from storage import LeaseLost, Ref

REF = Ref("sft", "v0", "0123456789abcdef")


@pytest.fixture
def write(tmp_path):
    """A function that saves one point whose content tells its step."""

    def save(points, step, **record):
        folder = points.folder()
        (folder / "state.json").write_text(str(step))
        (folder / "model").mkdir()
        (folder / "model" / "w.json").write_text("w" * step)
        points.save(step, folder, record)

    return save


def files(store):
    return store.list(f"savepoints/{REF.key}")


def test_the_newest_comes_back_with_its_record(store, another, write):
    points = store.save_points(REF)
    assert points.latest() is None
    for step in (2, 4, 6):
        write(points, step, lr=0.1, nested={"rng": [1, 2]})
        found = another.save_points(REF).latest()
        assert (found.step, found.record) == (step, {"lr": 0.1, "nested": {"rng": [1, 2]}})
        assert (found.path / "state.json").read_text() == str(step)
        assert (found.path / "model" / "w.json").read_text() == "w" * step
    assert store.warnings == another.warnings == []


def test_two_are_kept_and_all_are_dropped(store, write):
    points = store.save_points(REF)
    for step in range(1, 6):
        write(points, step)
    kept = files(store)
    assert [key for key in kept if key.count("/") == 3 and key.endswith(".json")] == [
        f"savepoints/{REF.key}/000004.json",
        f"savepoints/{REF.key}/000005.json",
    ]
    assert len({key.split("/")[3] for key in kept if key.count("/") > 3}) == 2
    points.drop()
    assert files(store) == []
    assert points.latest() is None


@over("kind", ["flipped", "truncated", "gone", "manifest torn", "manifest gone", "manifest swapped"])
def test_damage_falls_back_one_and_says_so(store, write, kind):
    points = store.save_points(REF)
    write(points, 2)
    write(points, 4)
    manifest = f"savepoints/{REF.key}/000002.json"
    state = next(key for key in files(store) if key.endswith("state.json") and store.get(key) == b"4")
    if kind == "manifest torn":
        store.put(manifest, store.get(manifest)[:-9])
    elif kind == "manifest gone":
        store.delete(manifest)
    elif kind == "manifest swapped":
        store.put(manifest, store.get(f"savepoints/{REF.key}/000001.json"))
    else:
        damaged = {"flipped": b"5", "truncated": b"", "gone": None}[kind]
        store.delete(state) if damaged is None else store.put(state, damaged)
    again = store.save_points(REF)
    assert again.latest().step == 2
    if kind != "manifest gone":
        named = manifest if kind.startswith("manifest") else state
        assert named in store.warnings[0] and "falling back" in store.warnings[0]
    write(again, 4)  # the work goes on, and the next reader finds it
    found = store.save_points(REF).latest()
    assert found.step == 4 and (found.path / "state.json").read_text() == "4"


def test_all_damaged_means_from_the_start(store, write):
    points = store.save_points(REF)
    write(points, 2)
    write(points, 4)
    for key in files(store):
        if key.endswith("state.json"):
            store.put(key, b"x")
    assert store.save_points(REF).latest() is None
    assert len(store.warnings) == 2


def test_listings_and_the_hint_may_lie(store, write, monkeypatch):
    points = store.save_points(REF)
    for step in (1, 2, 3):
        write(points, step)
    listed = store.backend.list
    monkeypatch.setattr(store.backend, "list", lambda *_, **__: iter(()))
    assert store.save_points(REF).latest().step == 3
    monkeypatch.setattr(store.backend, "list", listed)
    for hint in (b"1", b"999999", b"-1", b"", b"\xff", b"9" * 50):
        store.put(f"savepoints/{REF.key}/newest.txt", hint)
        assert store.save_points(REF).latest().step == 3
    store.delete(f"savepoints/{REF.key}/newest.txt")
    assert store.save_points(REF).latest().step == 3


def test_a_folder_of_the_callers_own_is_copied_and_left_alone(store, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.json").write_text("1")
    points = store.save_points(REF)
    points.save(1, mine, {})
    (mine / "a.json").write_text("2")
    assert (points.latest().path / "a.json").read_text() == "1"


def test_a_writer_that_lost_its_lease_cannot_save(store, another, write):
    lease = store.lease(REF.key, ttl=0.5, beat=30)
    points = store.save_points(REF, lease)
    write(points, 1)
    with another.lease(REF.key, ttl=0.5, beat=0.1):
        with pytest.raises(LeaseLost):
            write(points, 2)
        with pytest.raises(LeaseLost):  # nor can its child, which knows the epoch alone
            write(store.save_points(REF, store.holder(REF.key, lease.epoch)), 2)
        write(another.save_points(REF, another.holder(REF.key, lease.epoch + 1)), 3)
        assert another.save_points(REF).latest().step == 3


def test_a_snapshot_being_written_survives_the_trim_of_another(store, write):
    points = store.save_points(REF)
    early = points.folder()
    (early / "state.json").write_text("9")
    for step in (1, 2, 3):
        write(points, step)
    points.save(9, early, {})
    assert (store.save_points(REF).latest().path / "state.json").read_text() == "9"


def test_attempts_that_died_are_cleaned_by_the_next_save(store, write):
    dead = store.save_points(REF).folder()
    (dead / "state.json").write_text("half")
    if store.backend.folder is None:
        store.put(f"savepoints/{REF.key}/20200101T000000-dead/state.json", b"half")
    write(store.save_points(REF), 1)
    assert not any(store.get(key) == b"half" for key in files(store))
