"""Leases with fencing, made of create-only objects: at most one process works on a key, a dead one is replaced.

`leases/<key>/<epoch>.json` is created by whoever takes over and never changed or removed;
`beats/<key>/<epoch>.txt` is rewritten by its holder alone. The highest epoch holds the lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from storage.backend import Backend
from storage.errors import AlreadyExists, LeaseLost, NotFound, StorageError
from storage.names import check_key, seal, unseal

Guard = Callable[[], contextlib.AbstractContextManager[None]]

_SETTLE = 0.3  # seconds; on a store without conditions a rival's write may arrive just after our look


class Lease:
    """Holds `key` from `acquire` until `release`. `step` is shown to whoever waits."""

    def __init__(self, backend: Backend, key: str, epoch: int, nonce: str, beat: float) -> None:
        self.key, self.epoch, self.step = key, epoch, 0
        self.lost = threading.Event()
        self._backend, self._nonce, self._beat = backend, nonce, beat
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._write_beat(f"0 step {self.step}")
        self._thread = threading.Thread(target=self._run, name=f"lease {key}", daemon=True)
        self._thread.start()

    def _write_beat(self, text: str) -> None:
        self._backend.write(_beat_key(self.key, self.epoch), f"{text}\n".encode())

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._beat):
            count += 1
            try:
                if self._superseded():
                    self.lost.set()
                    return
                self._write_beat(f"{count} step {self.step}")
            except StorageError:
                continue  # an outage is not a loss; `check` decides when it matters

    def _superseded(self) -> bool:
        if self._backend.size(_epoch_key(self.key, self.epoch + 1)) is not None:
            return True
        if self._backend.conditional:
            return False
        # Without conditions a rival may have overwritten our epoch; what cannot be read says nothing.
        owner = _owner(self._backend, self.key, self.epoch)
        return bool(owner) and owner.get("nonce") != self._nonce

    def check(self) -> None:
        """Raise `LeaseLost` if another process has taken over; ask the store, whatever the clocks say."""
        if self.lost.is_set() or self._superseded():
            self.lost.set()
            raise LeaseLost(
                f"{self.key}: another process took over the lease (epoch {self.epoch + 1}) while this one was "
                "silent; this one stops without publishing"
            )

    def begin(self, step: int) -> int:
        """Note that work starts from `step`, and return how many holders in a row, this one included, started there.

        Holders that released the lease are not counted: only deaths without progress are.
        """
        self.step = step
        self._backend.write(_start_key(self.key, self.epoch), str(step).encode())
        count = 1
        for epoch in range(self.epoch - 1, 0, -1):
            if _text(self._backend, _start_key(self.key, epoch)) != str(step):
                break
            if (_text(self._backend, _beat_key(self.key, epoch)) or "").startswith("released"):
                break
            count += 1
        return count

    def release(self) -> None:
        """Give the lease back; the next process need not wait. Never raises for a store that is away."""
        if self._stop.is_set() or os.getpid() != self._pid:
            return
        self._stop.set()
        self._thread.join(timeout=10)
        try:
            if not self.lost.is_set() and not self._superseded():
                self._write_beat(f"released step {self.step}")
        except StorageError:
            return  # the others wait for one time to live instead

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Holder:
    """Asks for another process, usually the parent, whether it still holds `key` at `epoch`."""

    def __init__(self, backend: Backend, key: str, epoch: int) -> None:
        self._backend, self.key, self.epoch = backend, check_key(key), epoch

    def check(self) -> None:
        """Raise `LeaseLost` if the lease has been taken over since."""
        if self._backend.size(_epoch_key(self.key, self.epoch + 1)) is not None:
            raise LeaseLost(f"{self.key}: the lease was taken over (epoch {self.epoch + 1}); this process stops")


def _epoch_key(key: str, epoch: int) -> str:
    return f"leases/{key}/{epoch:06d}.json"


def _beat_key(key: str, epoch: int) -> str:
    return f"beats/{key}/{epoch:06d}.txt"


def _start_key(key: str, epoch: int) -> str:
    return f"beats/{key}/{epoch:06d}.start.txt"


def _text(backend: Backend, key: str) -> str | None:
    try:
        return backend.read(key).decode(errors="replace").strip()
    except NotFound:
        return None


def _owner(backend: Backend, key: str, epoch: int) -> dict[str, Any]:
    """Return who wrote an epoch object; what cannot be read tells nothing, and its beat decides alone."""
    try:
        body = unseal(backend.read(_epoch_key(key, epoch)))
    except (NotFound, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def current_epoch(backend: Backend, key: str) -> int:
    """Return the highest epoch of a lease, 0 if it was never taken. The listing is where to begin looking."""
    epoch = 0
    for entry in backend.list(f"leases/{key}", deep=False):
        stem = entry.key.rpartition("/")[2].removesuffix(".json")
        if stem.isascii() and stem.isdigit() and len(stem) == 6:
            epoch = max(epoch, int(stem))
    if epoch and backend.size(_epoch_key(key, epoch)) is None:
        epoch = 0  # the listing was wrong
    while backend.size(_epoch_key(key, epoch + 1)) is not None:
        epoch += 1
    return epoch


def _identity() -> dict[str, Any]:
    """Return what tells this process from every other one, as far as this system can say."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "place": _place(), "start": _started(pid)}


def _place() -> str:
    """Name the running kernel and the pid namespace: pids mean the same only there. Empty if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks, 'gone' if it has ended, empty if unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone"
    except (OSError, ValueError):
        return ""
    return "gone" if fields[0] in "ZX" else fields[19]


def _surely_dead(owner: dict[str, Any]) -> bool:
    """Whether the holder ran on this very machine and has ended. Then nobody has to wait for its time to live."""
    pid, place, start = owner.get("pid"), owner.get("place"), owner.get("start")
    if type(pid) is not int or not place or not start or place != _place():
        return False
    now = _started(pid)
    return bool(now) and now != start


def _try_take(backend: Backend, key: str, epoch: int, ttl: float, beat: float, guard: Guard) -> Lease | None:
    if backend.conditional:
        return _take(backend, key, epoch, ttl, beat)
    with guard():
        return _take(backend, key, epoch, ttl, beat)


def _take(backend: Backend, key: str, epoch: int, ttl: float, beat: float) -> Lease | None:
    nonce = secrets.token_hex(16)
    body = {**_identity(), "nonce": nonce, "ttl": ttl, "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    try:
        backend.create(_epoch_key(key, epoch), seal(body))
    except AlreadyExists:
        return None
    if not backend.conditional:
        time.sleep(_SETTLE)
        if _owner(backend, key, epoch).get("nonce") != nonce:
            return None
    return Lease(backend, key, epoch, nonce, beat)


def acquire(
    backend: Backend,
    key: str,
    *,
    ttl: float,
    beat: float,
    until: Callable[[], bool] | None = None,
    on_wait: Callable[[str], None] | None = None,
    guard: Guard = contextlib.nullcontext,
) -> Lease | None:
    """Wait for the lease on `key` and return it, or None as soon as `until` says that it is not needed.

    `guard` is held at the moment of taking it, on a store without conditions: there two takers are kept apart only by it.

    A holder is replaced after `ttl` seconds without a new beat, as seen by this process's own monotonic
    clock (its own stated ttl if longer), or at once if it was a process of this machine that has ended.
    """
    check_key(key)
    seen: tuple[int, str | None] = (0, None)
    since = told = float("-inf")
    while True:
        if until is not None and until():
            return None
        epoch = current_epoch(backend, key)
        beaten = _text(backend, _beat_key(key, epoch)) if epoch else None
        owner = _owner(backend, key, epoch) if epoch else {}
        now = time.monotonic()
        if seen != (epoch, beaten):
            seen, since = (epoch, beaten), now
        stated = owner.get("ttl")
        patience = max(ttl, stated) if isinstance(stated, int | float) and stated < 3600 else ttl
        free = epoch == 0 or (beaten or "").startswith("released") or now - since >= patience
        if free or _surely_dead(owner):
            if (lease := _try_take(backend, key, epoch + 1, ttl, beat, guard)) is not None:
                return lease
            continue
        if on_wait is not None and now - told >= 30:
            told = now
            who = json.dumps(f"{owner.get('host', '?')} pid {owner.get('pid', '?')}")
            on_wait(f"waiting for {key}: held by {who} (beat {beaten or 'not yet'}), taken over after {patience:g} s")
        time.sleep(min(0.5, beat / 4))
