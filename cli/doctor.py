"""`roundhouse doctor`: what about this machine would stop or spoil a campaign, one line each, in seconds."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.specifiers import SpecifierSet

from cli.services import serving, status
from cli.site import Site
from storage.redact import redact

Level = Literal["ok", "warn", "bad"]

# distribution, versions that work, what goes wrong with others, what to do
CLASHES = (
    ("prefect", "==3.8.8", "all services were measured with 3.8.8 (3.9 asks for a certifi that is not to be had)", ""),
    ("fastapi", ">=0.139,<0.151", "with 0.155 and later Prefect 3.8.8's server does not start ('min_items')", ""),
    ("sqlalchemy", ">=2.0,<2.1", "with 2.1 the scheduler of Prefect 3.8.8's server fails: schedules never run", ""),
    ("s3fs", ">=2026.9", "an unpinned `boto3 s3fs` silently gives 0.4.2, which cannot talk to today's botocore", ""),
    ("fsspec", "match:s3fs", "s3fs and fsspec must be of one release", ""),
    (
        "certifi",
        ">=2026",
        "an old root store refuses today's certificates, and prefect 3.9 asks for one not to be had",
        "",
    ),
    ("pydantic", ">=2.14,<2.15", "configs and Prefect's schemas were tested with 2.14", ""),
    ("torch", "==2.13.0", "byte-identical results are promised for this version only", ""),
    ("transformers", "==5.23.0", "model code differs between versions", ""),
    ("datasets", "==5.2.0", "", ""),
    ("deepspeed", "==0.19.8", "save points read its partitioned parameters through functions of this version", ""),
)
DISK_GB = 5.0  # `make run` writes under 2 GB; save points and the packages' caches need the rest
MEMORY_GB = 4.0  # the goal for `make run`
PATIENCE = 5.0  # seconds for a request to the store
CLOCK_SECONDS = 60.0  # S3 refuses requests signed more than 15 minutes off


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do if it is not well."""

    level: Level
    what: str
    found: str
    advice: str = ""


def examine(store: str | None = None, site: Site | None = None) -> list[Finding]:
    """Every finding, in the order of a first run: versions, machine, services, store."""
    site = site or Site()
    findings: list[Finding] = []
    for look in (_python, _versions, _imports_from_here, _disk, _memory, _threads, _clock, _ports):
        findings += look(site)
    findings += _store(site, store)
    return findings


def show(findings: list[Finding], say: Callable[[str], None]) -> int:
    """Print one line each; returns the exit status, 1 if something is bad."""
    for finding in findings:
        advice = f"  ->  {finding.advice}" if finding.advice and finding.level != "ok" else ""
        say(redact(f"{finding.level:5}{finding.what:14}{finding.found}{advice}"))
    bad, warn = (sum(f.level == level for f in findings) for level in ("bad", "warn"))
    say(f"{len(findings)} checks: {bad} bad, {warn} to look at")
    return 1 if bad else 0


def _python(site: Site) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] == (3, 11)
    yield Finding(
        "ok" if ok else "bad", "python", version, "use Python 3.11: `make clean`, then `make run PYTHON=python3.11`"
    )


def _versions(site: Site, installed: Callable[[str], str] = metadata.version) -> Iterator[Finding]:
    """Known version clashes, each named; one line says that all is well."""
    clashes, seen = [], []
    for name, wanted, why, _ in CLASHES:
        try:
            version = installed(name)
        except metadata.PackageNotFoundError:
            clashes.append(Finding("bad", name, "not installed", "`make install`"))
            continue
        wanted = f"=={installed('s3fs')}" if wanted == "match:s3fs" else wanted
        if SpecifierSet(wanted).contains(version, prereleases=True):
            seen.append(f"{name} {version}")
        else:
            reason = f"{why}; `make install`" if why else "`make install`"
            clashes.append(Finding("bad", name, f"{version}, wanted {wanted}", reason))
    yield from clashes
    if seen:
        yield Finding("ok", "versions", ", ".join(seen))


def _imports_from_here(site: Site) -> Iterator[Finding]:
    """Another distribution may ship a top-level `tasks` or `flows`, and then theirs wins over an editable install."""
    import cli
    import configs
    import storage
    import tasks

    strangers = [
        str(module.__file__)
        for module in (cli, configs, storage, tasks)
        if not Path(str(module.__file__)).resolve().is_relative_to(Path(__file__).resolve().parents[1])
    ]
    advice = "another package installs a folder of that name: use the .venv that `make install` makes"
    yield Finding("bad" if strangers else "ok", "rooms", ", ".join(strangers) or "imported from this project", advice)


def _disk(site: Site) -> Iterator[Finding]:
    free = shutil.disk_usage(site.root).free / 1e9
    level: Level = "ok" if free >= DISK_GB else "bad"
    yield Finding(
        level, "disk", f"{free:.1f} GB free in {site.root}", f"free {DISK_GB:.0f} GB, or set ROUNDHOUSE_STORE"
    )


def _memory(site: Site) -> Iterator[Finding]:
    free = psutil.virtual_memory().available / 1e9
    limit = _cgroup_limit()
    free = min(free, limit) if limit else free
    level: Level = "ok" if free >= MEMORY_GB else "warn"
    yield Finding(level, "memory", f"{free:.1f} GB available", f"the default campaign wants up to {MEMORY_GB:.0f} GB")


def _threads(site: Site) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    busy = load > 2 * cores
    yield Finding(
        "warn" if busy else "ok", "cores", f"{cores}, load {load:.1f}", "others use this machine: it will be slow"
    )
    program = shutil.which("nvidia-smi")
    if program:
        query = [program, "--query-gpu=name,memory.free", "--format=csv,noheader"]
        listed = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
        names = "; ".join(listed.stdout.split("\n")).strip("; ") or listed.stderr.strip()[:80]
        yield Finding("ok" if listed.returncode == 0 else "warn", "gpu", names, "the driver does not answer")


def _clock(site: Site) -> Iterator[Finding]:
    """Leases use monotonic clocks; S3 signatures and Prefect's schedules use the wall clock."""
    url = (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "").rstrip("/")
    if not url:
        yield Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S %Z") + " (no remote store to compare with)")
        return
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=5) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date")
    except OSError as error:
        yield Finding("bad", "clock", f"{url} does not answer: {error}", "is the S3 server up? `make s3`")
        return
    off = abs(time.time() - parsedate_to_datetime(date).timestamp()) if date else 0.0
    yield Finding("ok" if off < CLOCK_SECONDS else "bad", "clock", f"{off:.0f} s off {url}", "set this machine's clock")


def _ports(site: Site) -> Iterator[Finding]:
    running = status(site)
    for name, port, variable in (("server", site.port, "ROUNDHOUSE_PORT"), ("s3", site.s3_port, "ROUNDHOUSE_S3_PORT")):
        if running[name] != "stopped":
            yield Finding("ok", name, running[name])
            continue
        with socket.socket() as probe:
            probe.settimeout(1.0)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        found = f"port {port} is taken by another program" if taken else f"stopped; port {port} is free"
        yield Finding("warn" if taken else "ok", name, found, f"`make up` needs another one: {variable}=...")
    if running["server"] != "stopped" and serving(site) is None:
        yield Finding("bad", "server", "runs but does not answer", "`make down`, then `make up`")
    if site.toml.exists() and running["server"] == "stopped":
        yield Finding(
            "warn", "prefect.toml", "points to a server that is not up", "`make up`, or `make down` to remove it"
        )


def _store(site: Site, url: str | None) -> Iterator[Finding]:
    """Write, read back and delete a probe, and see whether the store keeps two writers of one name apart."""
    from storage import StorageError, open_store
    from storage.capabilities import unconditional

    place = url or os.environ.get("ROUNDHOUSE_STORE") or (site.root / "store").as_uri()
    began = time.monotonic()
    try:
        store = open_store(place)
        store.hurry(PATIENCE)
        known = store.capabilities()
    except (StorageError, ValueError, OSError) as error:
        yield Finding("bad", "store", f"{place}: {' '.join(str(error).split())}", "check the URL and the credentials")
        return
    spent = time.monotonic() - began
    yield Finding("ok", "store", f"{place}: writable, probe took {spent:.2f} s")
    capable = known.conditional
    if known.free_bytes is not None and known.free_bytes / 1e9 < DISK_GB:
        advice = f"free {DISK_GB:.0f} GB there, or set ROUNDHOUSE_STORE"
        yield Finding("bad", "store's disk", f"{known.free_bytes / 1e9:.1f} GB free", advice)
    others = (line for line in known.warnings if line != unconditional(store.url))  # that one has a line of its own
    yield from (Finding("warn", "store's kind", line, "see docs/reliability.md") for line in others)
    yield Finding(
        "ok" if capable else "warn",
        "conditions",
        "the store keeps two writers apart (create-only writes hold)" if capable else "the store ignores If-None-Match",
        "run campaigns under one Prefect server only (`make up`): its limits then keep a stage from running twice",
    )


def _cgroup_limit() -> float | None:
    """The memory limit of this container in GB, if it has one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) / 1e9 if text.isdigit() else None
