"""Plain objects: whole or absent, created at most once, listed under folders."""

import os
import threading

import pytest

from storage import AlreadyExists, NotFound, Refused, StorageError, Unwritable, open_store


def test_objects_come_and_go(store, another):
    with pytest.raises(NotFound):
        store.get("a/b")
    assert not store.exists("a/b")
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert another.get("a/b") == b"two" and another.exists("a/b")
    store.delete("a/b")
    store.delete("a/b")
    assert not another.exists("a/b")


def test_create_is_for_one(store, another):
    store.create("leases/x", b"mine")
    with pytest.raises(AlreadyExists):
        another.create("leases/x", b"theirs")
    another.create("leases/x", b"mine")  # the key holds these bytes: what a lost response leaves behind
    assert store.get("leases/x") == b"mine"


def test_an_empty_create_does_not_destroy(store):
    store.create("x", b"something")
    with pytest.raises(AlreadyExists):
        store.create("x", b"")
    assert store.get("x") == b"something"


def test_listing_is_deep_sorted_and_stays_under_its_folder(store):
    for key in ("a/1", "a/b/2", "ab/3", "a/b/c/4"):
        store.put(key, b"x")
    assert store.list("a") == ["a/1", "a/b/2", "a/b/c/4"]
    assert [entry.key for entry in store.backend.list("a", deep=False)] == ["a/1"]
    assert store.list("nothing") == []


def test_racing_creators_have_one_winner(opened):
    stores = [opened() for _ in range(4)]
    if not stores[0].conditional:
        pytest.skip("the store ignores conditions")
    for number in range(5):
        gate, won = threading.Barrier(4), []

        def race(store, name, number=number, gate=gate, won=won):
            gate.wait()
            try:
                store.create(f"race/{number}", name)
                won.append(name)
            except AlreadyExists:
                pass

        threads = [threading.Thread(target=race, args=(store, b"%d" % i)) for i, store in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and stores[0].get(f"race/{number}") == won[0]


def test_the_store_is_probed_without_leaving_anything(store):
    store.check_writable()
    assert store.conditional in (True, False)
    assert store.list("probe") == []


def test_a_store_without_conditions_says_so_once_or_is_refused(store):
    store.check_conditional(required=False)
    assert len(store.warnings) == (0 if store.conditional else 1)
    assert store.news() == store.warnings and store.news() == []
    if store.conditional:
        store.check_conditional(required=True)
    else:
        with pytest.raises(StorageError, match=r"ignores create-only writes.*require_cas"):
            store.check_conditional(required=True)


def test_capabilities_are_measured(store):
    facts = store.capabilities()
    assert facts.conditional == store.conditional and facts.url == store.url
    assert facts.put_ms > 0 and facts.get_ms > 0 and abs(facts.clock_s) < 60
    assert (facts.kind == "folder") == (facts.free_bytes is not None)
    assert any("create-only" in line for line in facts.warnings) != facts.conditional
    assert store.list("probe") == []


def test_states_are_hints(store):
    assert store.get_state("last-run") is None
    store.put_state("last-run", b"1")
    store.put_state("last-run", b"2")
    assert store.get_state("last-run") == b"2"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/x",
        "memory://x",
        "github://a:b@c/d",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?versionId=1",
        "s3://bucket/x#y",
        "simplecache::s3://bucket/x",
        "file://host/x",
        "file:relative",
        "s3://",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "",
        "a\nb",
        "gs://b/x",
    ],
)
def test_other_urls_are_refused_without_echoing_secrets(url):
    with pytest.raises(Refused) as caught:
        open_store(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_relative_and_file_urls_are_the_same_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("s").put("x", b"1")
    assert open_store(f"file://{tmp_path}/s").get("x") == b"1"
    assert open_store("s").url == f"file://{tmp_path}/s"


def test_a_link_inside_the_store_is_not_followed(tmp_path):
    store = open_store(tmp_path / "s")
    store.put("a/x", b"1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"secret")
    (tmp_path / "s" / "b").symlink_to(tmp_path / "outside")
    (tmp_path / "s" / "a" / "y").symlink_to(tmp_path / "outside" / "x")
    for read in (lambda: store.get("b/x"), lambda: store.get("a/y"), lambda: store.put("b/x", b"")):
        with pytest.raises(Exception, match=r"symbolic link|does not follow links"):
            read()
    assert store.list("a") == ["a/x"]
    assert (tmp_path / "outside" / "x").read_bytes() == b"secret"


@pytest.mark.parametrize("where", ["file", "missing-parent-is-file"])
def test_a_root_that_cannot_be_a_folder_is_one_clear_line(tmp_path, where):
    (tmp_path / "f").write_text("")
    with pytest.raises(Unwritable) as caught:
        open_store(tmp_path / "f" / ("x" if where != "file" else "")).check_writable()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_leaves_no_temporary_file(tmp_path):
    import resource

    pid = os.fork()
    if pid == 0:  # the limit stays in the child
        import signal

        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            open_store(tmp_path / "s").put("x", b"1" * 2000)
        except Unwritable as err:
            code = 0 if "larger than this file system" in str(err) and str(tmp_path) in str(err) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [path.name for path in (tmp_path / "s").rglob("*")] == []
