"""What a store can do, found out by trying it."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from storage.backend import Backend


@dataclass(frozen=True)
class Capabilities:
    """Facts about a store, for `roundhouse doctor` and the line that a run prints at its start.

    `put_ms`, `get_ms`: median time of a small write and read. `clock_s`: the server's clock minus this
    machine's. `free_bytes`: room on the disk, None for object storage.
    """

    url: str
    kind: str
    conditional: bool
    put_ms: float
    get_ms: float
    clock_s: float
    free_bytes: int | None
    retries: int
    versions: dict[str, str]
    warnings: tuple[str, ...]


def measure(backend: Backend, check_writable: Callable[[], None]) -> Capabilities:
    """Return the store's facts. Raises `Unwritable` with advice if it cannot be used at all."""
    check_writable()
    key, data = f"probe/{secrets.token_hex(16)}", secrets.token_bytes(1000)
    puts, gets = [], []
    try:
        for _ in range(3):
            start = time.perf_counter()
            backend.write(key, data)
            middle = time.perf_counter()
            backend.read(key)
            puts.append((middle - start) * 1000)
            gets.append((time.perf_counter() - middle) * 1000)
    finally:
        backend.delete(key)
    clock = backend.now() - time.time()
    free = shutil.disk_usage(backend.folder).free if backend.folder is not None else None
    conditional = backend.conditional
    return Capabilities(
        url=backend.url,
        kind="folder" if backend.folder is not None else "s3",
        conditional=conditional,
        put_ms=sorted(puts)[1],
        get_ms=sorted(gets)[1],
        clock_s=clock,
        free_bytes=free,
        retries=backend.retries,
        versions={name: version(name) for name in ("s3fs", "fsspec", "aiobotocore", "botocore")},
        warnings=tuple(_warnings(backend, conditional, clock, free)),
    )


def unconditional(url: str) -> str:
    """Return the line for a store that does not honour create-only writes."""
    return (
        f"{url}: the store ignores create-only writes, so two runs of one stage are kept apart only by one Prefect "
        "server's strict, leased limit (roundhouse-taking)"
    )


def _warnings(backend: Backend, conditional: bool, clock: float, free: int | None) -> list[str]:
    found = []
    if not conditional:
        found.append(unconditional(backend.url))
    if abs(clock) > 300:
        found.append(f"{backend.url}: its clock differs from this machine's by {clock:.0f} s; S3 refuses 900 s")
    if free is not None and free < 2**30:
        found.append(f"{backend.url}: only {free / 2**20:.0f} MiB free on its disk")
    if backend.folder is not None and _remote(str(backend.folder)):
        found.append(f"{backend.url}: a network file system; leases are proven on local disks only")
    if tuple(map(int, version("s3fs").split(".")[:2])) < (2026, 9):
        found.append(f"s3fs {version('s3fs')} is older than 2026.9; install the locked version")
    return found


def _remote(path: str) -> bool:
    """Whether a folder lies on a network file system, as the kernel's table of mounts says."""
    best, kind = "", ""
    try:
        with open("/proc/self/mounts") as table:
            for line in table:
                _, where, name, *_ = line.split()
                where = where.replace("\\040", " ")
                if os.path.commonpath((path, where)) == where and len(where) >= len(best):
                    best, kind = where, name
    except (OSError, ValueError):
        return False
    return kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre") or kind.startswith("fuse.")
