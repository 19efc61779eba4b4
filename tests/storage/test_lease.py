"""Leases: one holder at a time, the dead are replaced, the replaced cannot publish."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

import pytest
from scenario import over

from storage import Lease, LeaseLost, Ref, open_store
from storage.lease import current_epoch

KEY = "sft/v0-0123456789abcdef"
FAST = {"ttl": 1.0, "beat": 0.1}


def test_one_holder_and_release_lets_the_next_in_at_once(store, another):
    with store.lease(KEY, ttl=60, beat=20) as held:
        assert held.epoch == 1
        held.check()
        lines = []
        assert another.lease(KEY, until=lambda: bool(lines), on_wait=lines.append) is None
        assert len(lines) == 1 and "waiting for " + KEY in lines[0] and str(os.getpid()) in lines[0]
    start = time.monotonic()
    with another.lease(KEY, ttl=60, beat=20) as second:
        assert second.epoch == 2
        assert time.monotonic() - start < 5
        with pytest.raises(LeaseLost):
            held.check()


def test_a_result_that_has_appeared_ends_the_wait(store, another):
    with store.lease(KEY):
        assert another.lease(KEY, until=lambda: True) is None
    assert current_epoch(store.backend, KEY) == 1


def silence(lease: Lease):
    """Stop the beats as a freeze would: the holder believes that it holds."""
    lease._stop.set()
    lease._thread.join()


def test_a_silent_holder_is_replaced_after_one_ttl_of_my_clock(store, another):
    frozen = store.lease(KEY, **FAST)
    silence(frozen)
    start = time.monotonic()
    with another.lease(KEY, **FAST) as taker:
        assert 1.0 <= time.monotonic() - start < 5
        assert taker.epoch == 2
        with pytest.raises(LeaseLost, match=f"{KEY}: another process took over"):
            frozen.check()
        assert frozen.lost.is_set()


def test_a_beating_holder_is_not_replaced_and_shows_its_step(store, another):
    with store.lease(KEY, **FAST) as held:
        held.step = 41
        until = time.monotonic() + 3
        lines = []
        assert another.lease(KEY, **FAST, until=lambda: time.monotonic() > until, on_wait=lines.append) is None
        held.check()
        beat = store.get(f"beats/{KEY}/000001.txt").decode().split()
        assert int(beat[0]) >= 5 and beat[1:] == ["step", "41"]


def test_the_beat_thread_notices_the_loss_by_itself(store, another):
    held = store.lease(KEY, **FAST)
    another.create(f"leases/{KEY}/000002.json", b'{"nonce": "theirs"}')
    assert held.lost.wait(5)
    with pytest.raises(LeaseLost):
        held.check()
    held.release()
    assert "released" not in store.get(f"beats/{KEY}/000001.txt").decode()


@over("damage", [b"", b"\xff" * 20, b"[1]", b'{"ttl": 1e300, "pid": "x"}', b'{"pid": true}'])
def test_a_damaged_epoch_object_is_waited_out(store, damage):
    store.put(f"leases/{KEY}/000001.json", damage)
    with store.lease(KEY, ttl=0.3, beat=0.1) as lease:
        assert lease.epoch == 2


def test_a_listing_is_only_a_hint(store, monkeypatch):
    for _ in range(3):
        store.lease(KEY).release()
    listed = store.backend.list
    for lie in (lambda *_, **__: iter(()), lambda *a, **k: iter([e for e in listed(*a, **k) if "000001" in e.key])):
        monkeypatch.setattr(store.backend, "list", lie)
        assert current_epoch(store.backend, KEY) == 3
    monkeypatch.undo()
    with store.lease(KEY) as lease:
        assert lease.epoch == 4


def test_deaths_without_progress_are_counted(store):
    def holder(step, *, dies):
        lease = store.lease(KEY, ttl=0.2, beat=0.05)
        count = lease.begin(step)
        silence(lease) if dies else lease.release()
        return count

    assert [holder(0, dies=True) for _ in range(3)] == [1, 2, 3]
    assert holder(20, dies=True) == 1  # it had progressed
    assert holder(20, dies=False) == 2
    assert holder(20, dies=True) == 1  # a holder that gave the lease back did not die


def work(url, number, gate, results):
    """Do a stage as the task does: look, take the lease, look again, compute, commit."""
    from storage import open_store

    ref = Ref("sft", "v0", "0123456789abcdef")
    with open_store(url) as store:
        gate.wait()
        lease = store.lease(KEY, ttl=20, beat=0.5, until=lambda: store.manifest(ref) is not None)
        computed = False
        if lease is not None:
            with lease:
                if store.manifest(ref) is None:
                    computed = True
                    time.sleep(0.3)
                    draft = store.draft(ref)
                    (draft.path / "x.json").write_text("{}")
                    draft.commit({"who": number}, lease)
        results.put((computed, store.manifest(ref).record["who"]))


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_four_processes_compute_a_stage_once(store_url, store, tally, rounds):
    if not store.conditional:
        pytest.skip("the store ignores conditions")
    store.close()
    for number in range(rounds):
        _four_at_once(store_url if rounds == 1 else f"{store_url}{number}")
    kind = "folder" if store_url.startswith("file") else "moto"
    tally(f"four processes at once on {kind}", rounds, "rounds; computed once, one result for all")


def _four_at_once(url):
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(4), context.Queue()
    children = [context.Process(target=work, args=(url, number, gate, results)) for number in range(4)]
    for child in children:
        child.start()
    found = [results.get(timeout=300) for _ in children]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert sum(computed for computed, _ in found) == 1
    assert len({who for _, who in found}) == 1


def hold(url, pipe):
    """Hold a lease; on order, try to publish."""
    store = open_store(url)
    lease = store.lease(KEY, ttl=1.5, beat=0.2)
    draft = store.draft(Ref("sft", "v0", "0123456789abcdef"))
    (draft.path / "x.json").write_text('"zombie"')
    pipe.send("ready")
    assert pipe.poll(60)
    try:
        draft.commit({"who": "zombie"}, lease)
        pipe.send("published")
    except LeaseLost:
        pipe.send("lost")
    store.close()


def test_a_writer_frozen_past_its_lease_cannot_publish(store_url, store):
    ref = Ref("sft", "v0", "0123456789abcdef")
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()  # not an Event: setting one waits for the frozen process to wake
    zombie = context.Process(target=hold, args=(store_url, end))
    zombie.start()
    assert pipe.poll(30) and pipe.recv() == "ready"
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        with store.lease(KEY, ttl=1.5, beat=0.2) as lease:
            pipe.send("publish")
            os.kill(zombie.pid, signal.SIGCONT)
            assert pipe.poll(30) and pipe.recv() == "lost"
            assert store.manifest(ref) is None
            draft = store.draft(ref)
            (draft.path / "x.json").write_text('"successor"')
            draft.commit({"who": "successor"}, lease)
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
        zombie.join(30)
    assert (store.fetch(ref) / "x.json").read_text() == '"successor"'


def test_a_holder_that_died_on_this_machine_is_replaced_at_once(store_url, store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=hold_long, args=(store_url, ready))
    child.start()
    assert ready.wait(30)
    child.kill()
    child.join()
    start = time.monotonic()
    with store.lease(KEY, ttl=90) as lease:
        assert lease.epoch == 2 and time.monotonic() - start < 5


def hold_long(url, ready):
    open_store(url).lease(KEY, ttl=90, beat=20)
    ready.set()
    time.sleep(60)


def test_two_takeovers_of_one_dead_lease_have_one_winner(opened):
    store = opened()
    if not store.conditional:
        pytest.skip("the store ignores conditions")
    silence(store.lease(KEY, ttl=0.5, beat=0.1))
    holders, most, lock = [], [], threading.Lock()

    def take(mine):
        with mine.lease(KEY, ttl=0.5, beat=0.1):
            with lock:
                holders.append(1)
                most.append(len(holders))
            time.sleep(0.2)
            with lock:
                holders.pop()

    threads = [threading.Thread(target=take, args=(opened(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert current_epoch(store.backend, KEY) == 5


def test_without_conditions_a_guard_keeps_two_takers_apart(opened, monkeypatch):
    """Each looks, and writes a little later than the one before: alone, each would take itself for the holder."""
    monkeypatch.setattr("storage.lease._SETTLE", 0.0)
    lock, entered, gate = threading.Lock(), [], threading.Barrier(3)
    stores = [opened() for _ in range(3)]
    conditional, *_ = [store.conditional for store in stores]  # connects, one after the other

    @contextlib.contextmanager
    def guard():
        with lock:
            entered.append(1)
            yield

    def slow(store, number):
        size = store.backend.size

        def looks(key):
            found = size(key)
            if key.startswith("leases/") and key.endswith("000001.json"):
                time.sleep(0.15 * number)
            return found

        return looks

    holders = []

    def take(number):
        store = stores[number]
        store.backend.size = slow(store, number)
        gate.wait(60)
        lease = store.lease(KEY, ttl=90, beat=20, until=lambda: bool(holders), guard=guard)
        if lease is None:
            return
        with lease:
            if holders:  # let go of between the question and the taking: looked at again, as by a stage
                return
            time.sleep(0 if conditional else 0.6)  # until the slowest has written
            lease.check()
            holders.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) == 1
    assert bool(entered) != stores[0].conditional
