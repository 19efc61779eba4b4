"""Garbage collection: what can be reached stays, what cannot goes, and being killed in the middle is harmless."""

import functools
import os
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Corrupt, Ref, StorageError, open_store
from storage.gc import forget, sweep
from storage.names import digest
from storage.reach import reachable, roots

DIGEST = "0123456789abcdef"
NONE = -2.0  # servers tell the time in whole seconds, so what was just written may seem younger than now


def ref(number):
    return Ref("stage", f"n{number}", digest(number))


def make(store, number, inputs=()):
    draft = store.draft(ref(number))
    (draft.path / "x.json").write_text(str(number) * 10)
    (draft.path / "_beside").mkdir()
    (draft.path / "_beside" / "log.txt").write_text("log")
    return draft.commit(
        {"inputs": {f"i{n}": ref(n).key for n in inputs}, "deep": [{"x": [ref(n).key for n in inputs]}]}
    )


def there(store, numbers):
    return {number for number in numbers if store.manifest(ref(number)) is not None}


def age(store):
    """Make everything look old; on object storage the tests use no grace instead."""
    for parent, _, names in os.walk(store.backend.folder):
        for name in names:
            os.utime(os.path.join(parent, name), (1e9, 1e9))


def test_what_nothing_reaches_goes_and_the_rest_stays(store):
    make(store, 1)
    make(store, 2, inputs=[1])
    make(store, 3)
    make(store, 4, inputs=[3])
    make(store, 5)
    store.campaign("c", DIGEST).note("model", ref(2))
    store.put_alias("best", ref(4))
    dry = sweep(store, grace=NONE)
    assert [(item.kind, item.key) for item in dry.items] == [("artifact", ref(5).key)]
    assert dry.bytes == sum(e.size for e in store.backend.list(f"artifacts/{ref(5).key}")) > 0
    assert there(store, range(1, 6)) == {1, 2, 3, 4, 5}
    done = sweep(store, grace=NONE, dry_run=False)
    assert done.items == dry.items and done.kept == 4
    assert there(store, range(1, 6)) == {1, 2, 3, 4}
    assert not store.list(f"artifacts/{ref(5).key}") and not store.list("trash")
    assert sweep(store, grace=NONE).items == ()
    store.fetch(ref(2))


def test_the_young_are_spared(store):
    make(store, 1)
    store.draft(ref(2))
    assert sweep(store, dry_run=False).items == ()
    assert there(store, [1]) == {1}


def test_forgetting_a_campaign_frees_what_only_it_reached(store):
    for number in (1, 2, 3):
        make(store, number)
    one, two = store.campaign("one", DIGEST), store.campaign("two", DIGEST)
    one.create({"a": 1})
    one.note("a", ref(1)), one.note("b", ref(2)), two.note("b", ref(2)), two.note("c", ref(3))
    forget(store, "one", DIGEST)
    assert store.campaigns() == []
    sweep(store, grace=NONE, dry_run=False)
    assert there(store, [1, 2, 3]) == {2, 3}


def test_dead_attempts_and_finished_save_points_go_and_resumable_ones_stay(store):
    make(store, 1)
    store.campaign("c", DIGEST).note("a", ref(1))
    make(store, 7)  # reached by nothing but the save point of unfinished work
    for number in (1, 2):
        points = store.save_points(ref(number))
        folder = points.folder()
        (folder / "s.json").write_text("1")
        points.save(1, folder, {"inputs": [ref(7).key]} if number == 2 else {})
    store.put(f"artifacts/{ref(1).key}/20200101T000000-dead/x.json", b"half")
    store.put(f"artifacts/{ref(3).key}/20200101T000000-dead/x.json", b"half")
    done = sweep(store, grace=NONE, dry_run=False)
    assert sorted((item.kind, item.key.split("/")[2]) for item in done.items if item.kind != "probe") == [
        ("attempt", f"n1-{digest(1)}"),
        ("attempt", f"n3-{digest(3)}"),
        ("save points", f"n1-{digest(1)}"),
    ]
    assert store.save_points(ref(1)).latest() is None
    assert store.save_points(ref(2)).latest().step == 1
    assert there(store, [1, 7]) == {1, 7}
    assert not store.list(f"artifacts/{ref(3).key}")
    assert {item.kind for item in sweep(store, grace=NONE, dry_run=False, unfinished=True).items} >= {"save points"}
    assert store.save_points(ref(2)).latest() is None


def test_work_under_a_lease_is_left_alone(store):
    with store.lease(ref(1).key):
        draft = store.draft(ref(1))
        (draft.path / "x.json").write_text("half")
        store.put(f"artifacts/{ref(1).key}/20200101T000000-mine/x.json", b"half")
        points = store.save_points(ref(1))
        points.save(1, draft.path, {})
        sweep(store, grace=NONE, dry_run=False, unfinished=True)
        assert store.save_points(ref(1)).latest().step == 1
        assert store.exists(f"artifacts/{ref(1).key}/20200101T000000-mine/x.json")
        assert (draft.path / "x.json").exists()
    sweep(store, grace=NONE, dry_run=False, unfinished=True)
    assert not store.exists(f"artifacts/{ref(1).key}/20200101T000000-mine/x.json")


def test_nothing_goes_if_what_is_reachable_cannot_be_told(store, monkeypatch):
    make(store, 1)
    store.campaign("c", DIGEST).note("a", ref(1))
    note = store.list(f"campaigns/c-{DIGEST}")[0]
    good = store.get(note)
    store.put(note, b"damaged")
    with pytest.raises(Corrupt):
        sweep(store, grace=NONE, dry_run=False)
    store.put(note, good)
    listed, looks = store.backend.list, []

    def flaky(prefix, **options):
        looks.append(prefix)
        return iter(()) if looks.count("campaigns") == 2 and prefix == "campaigns" else listed(prefix, **options)

    monkeypatch.setattr(store.backend, "list", flaky)
    with pytest.raises(StorageError, match="changed while it was read"):
        sweep(store, grace=NONE, dry_run=False)
    assert there(store, [1]) == {1}


def test_an_artifact_that_is_noted_during_the_sweep_comes_back(store, monkeypatch):
    make(store, 1)
    make(store, 2)
    delete, record = store.backend.delete, store.campaign("c", DIGEST)

    def race(key):
        delete(key)
        if key == f"artifacts/{ref(1).key}/manifest.json":
            record.note("a", ref(1))  # a run has just hit it

    monkeypatch.setattr(store.backend, "delete", race)
    sweep(store, grace=NONE, dry_run=False)
    assert there(store, [1, 2]) == {1}
    store.fetch(ref(1))


def in_child(work):
    """Run `work` in a forked process and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sweep_dying_at(store, count):
    """Sweep, and die without a word at write number `count`."""
    left = [count]

    def dies(real, *args):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return real(*args)

    for name in ("delete", "write", "create"):
        setattr(store.backend, name, functools.partial(dies, getattr(store.backend, name)))
    sweep(store, dry_run=False)


def test_killed_at_any_write_loses_nothing(tmp_path, tally):
    for at in range(1, 60):
        store = open_store(tmp_path / str(at))
        for number in (1, 2, 3, 4):
            make(store, number, inputs=[number - 1] if number == 2 else [])
        store.campaign("c", DIGEST).note("a", ref(2))
        age(store)
        code = in_child(functools.partial(sweep_dying_at, store, at))
        sweep(store, dry_run=False, grace=NONE)
        assert there(store, [1, 2, 3, 4]) == {1, 2}
        assert not store.list(f"artifacts/{ref(3).key}") and not store.list("trash")
        store.fetch(ref(1)), store.fetch(ref(2))
        if code == 0:
            break
        assert code == 9
    tally("garbage collection killed at a write", at - 1)
    assert at > 10


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_dags_keep_exactly_what_is_reachable(data):
    count = data.draw(st.integers(1, 8))
    edges = {n: data.draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(count)}
    noted = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    named = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
    expected, waiting = set(), [*noted, *named]
    while waiting:
        if (number := waiting.pop()) not in expected:
            expected.add(number)
            waiting += edges[number]
    with tempfile.TemporaryDirectory() as folder, open_store(folder) as store:
        for number in range(count):
            make(store, number, edges[number])
        for number in noted:
            store.campaign(f"c{number % 2}", DIGEST).note(f"l{number}", ref(number))
        for number in named:
            store.put_alias(f"a{number}", ref(number))
        assert reachable(store, roots(store)) == {ref(number) for number in expected}
        age(store)
        sweep(store, dry_run=False)
        assert there(store, range(count)) == expected
        for number in expected:
            store.fetch(ref(number))


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["moto"], indirect=True)  # rclone keeps no list of uploads
def test_an_upload_whose_writer_died_is_aborted(s3_server, tmp_path):
    store = open_store(s3_server.url(), cache=tmp_path / "c")
    make(store, 1)
    store.campaign("c", DIGEST).note("a", ref(1))
    begun = store.backend._object("create_multipart_upload", f"artifacts/{ref(1).key}/dead/model.safetensors")
    assert begun["UploadId"] and store.backend.abandoned(-100, remove=False) == 1
    assert sweep(store, grace=-100, dry_run=True).uploads == 1 and store.backend.abandoned(-100, remove=False) == 1
    assert sweep(store, grace=-100, dry_run=False).uploads == 1 and store.backend.abandoned(-100, remove=False) == 0
    store.fetch(ref(1))
    store.close()


def test_leftovers_of_killed_writers_go(tmp_path):
    store = open_store(tmp_path / "s", cache=tmp_path / "c")
    make(store, 1)
    store.campaign("c", DIGEST).note("a", ref(1))
    part = tmp_path / "s" / "artifacts" / ".part-0011"
    part.write_bytes(b"half")
    store.put(f"probe/{'0' * 32}", b"x")
    age(store)
    draft = store.cache / "drafts" / "20200101T000000-dead"
    draft.mkdir(parents=True)
    os.utime(draft, (1e9, 1e9))
    done = sweep(store, dry_run=False)
    assert done.uploads == 1 and [item.kind for item in done.items] == ["probe"]
    assert not part.exists() and not draft.exists()
