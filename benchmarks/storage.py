"""Storage side by side with plain copies: `python -m benchmarks.storage [--mib 256] [--repeats 5] [--only PART ..]`.

put: a file becomes a committed artifact (written into the draft, hashed, made durable, and on S3 read back and hashed); get:
`fetch` of an artifact nobody has a copy of (every byte hashed). The others do the same checks: on a folder copy + fsync and
two SHA-256 passes; on S3 (`rclone serve s3` on loopback) SHA-256 of the file, the transfer, and for a put a download of what
was stored with its SHA-256. Each repeat does all of them in turn; the figure is the ratio of medians, others / ours, with
the least and the largest ratio of a repeat. memory: peak of a process that puts and gets files of rising size. saves: for how
long a save point holds up the work, when it is stored beside it and when it is waited for.
"""

import argparse
import functools
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from benchmarks.reliability.events import in_child
from configs.runtime import Runtime
from engine.job import Job
from storage import Ref, Store, open_store, sha256_file
from storage.folder import sync_file

Timed = dict[str, Callable[[], None]]
CHUNK = 1 << 20


def random_file(path: Path, mib: int) -> Path:
    """A file that does not compress, with a name that the store takes."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(CHUNK))
    return path


def put(store: Store, source: Path, name: str) -> Ref:
    """Our way in: a draft with the file, committed."""
    ref = Ref("rows", "file", hashlib.sha256(name.encode()).hexdigest()[:16])
    draft = store.draft(ref)
    shutil.copyfile(source, draft.path / "data.json")
    draft.commit({})
    return ref


def on_a_folder(home: Path, source: Path) -> Iterator[tuple[str, Timed]]:
    """Both ways in and out of a folder, for one repeat after the other."""
    for turn in range(10**6):
        store, plain = open_store(home / f"store{turn}"), home / f"plain{turn}"
        ref: list[Ref] = []

        def copied(source: Path = source, target: Path = plain) -> None:
            expected = sha256_file(source)
            shutil.copyfile(source, target)
            sync_file(target)
            assert sha256_file(target) == expected

        yield "folder, put", {"copy": copied, "ours": lambda s=store, r=ref: r.append(put(s, source, "put"))}  # type: ignore[misc]
        again = home / f"again{turn}"
        yield (
            "folder, get",
            {
                "copy": lambda p=plain, a=again, c=copied: c(p, a),  # type: ignore[misc]
                "ours": lambda s=store, r=ref: check(s.fetch(r[0]), source),  # type: ignore[misc]
            },
        )
        for path in (plain, again):
            path.unlink()
        shutil.rmtree(home / f"store{turn}")


def check(folder: Path, source: Path) -> None:
    """The fetched file is there in full; its bytes `fetch` has hashed."""
    assert (folder / "data.json").stat().st_size == source.stat().st_size


def on_s3(home: Path, source: Path, server: Any) -> Iterator[tuple[str, Timed]]:
    """Our way, boto3's and rclone's in and out of a real server."""
    import boto3

    client = boto3.client("s3", endpoint_url=server.endpoint)
    (home / "rclone.conf").touch()
    settings = ["--config", str(home / "rclone.conf"), "--s3-provider", "Rclone", "--s3-endpoint", server.endpoint,
                "--s3-env-auth", "--s3-force-path-style", "--s3-chunk-size", "16Mi"]  # fmt: skip

    def rclone(*arguments: str) -> None:
        subprocess.run(["rclone", *arguments, *settings], check=True, stdout=subprocess.DEVNULL)

    def checked(up: Callable[[str], None], down: Callable[[str, Path], None], key: str) -> None:
        expected = sha256_file(source)
        up(key)
        down_checked(down, key, expected)

    def down_checked(down: Callable[[str, Path], None], key: str, expected: str) -> None:
        target = home / "down"
        down(key, target)
        assert sha256_file(target) == expected
        target.unlink()

    ways = {
        "boto3": (
            lambda key: client.upload_file(str(source), server.bucket, key),
            lambda key, path: client.download_file(server.bucket, key, str(path)),
        ),
        "rclone": (
            lambda key: rclone("copyto", str(source), f":s3:{server.bucket}/{key}"),
            lambda key, path: rclone("copyto", f":s3:{server.bucket}/{key}", str(path)),
        ),
    }
    expected = sha256_file(source)
    for turn in range(10**6):
        url = f"s3://{server.bucket}/ours{turn}"
        ref: list[Ref] = []
        caches = home / f"cache{turn}", home / f"other{turn}"
        with open_store(url, cache=caches[0]) as store, open_store(url, cache=caches[1]) as other:
            _ = store.conditional, other.backend.size("none.json")  # both are connected, as boto3's client is
            ours = lambda s=store, r=ref: r.append(put(s, source, "put"))
            yield (
                "S3, put",
                {"ours": ours}
                | {  # type: ignore[dict-item]
                    name: lambda w=way, n=name, t=turn: checked(*w, f"{n}/{t}")  # type: ignore[misc]
                    for name, way in ways.items()
                },
            )
            yield (
                "S3, get",
                {"ours": lambda s=other, r=ref: check(s.fetch(r[0]), source)}
                | {  # type: ignore[misc]
                    name: lambda w=way, n=name, t=turn: down_checked(w[1], f"{n}/{t}", expected)  # type: ignore[misc]
                    for name, way in ways.items()
                },
            )
        for folder in (*caches, *(server.folder / name for name in (f"ours{turn}", *ways))):
            shutil.rmtree(folder, ignore_errors=True)


def compare(pairs: Iterator[tuple[str, Timed]], repeats: int) -> list[str]:
    """Table lines: seconds of everybody, medians over the repeats, and the ratios."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(2 * (repeats + 1)):  # the first of each kind only warms up
        what, ways = next(pairs)
        names = list(ways)
        turn = len(seconds.get(what, {}).get("ours", [])) % len(names)
        for name in (names[turn:] + names[:turn]) if "put" not in what else names:
            began = time.perf_counter()
            ways[name]()
            seconds.setdefault(what, {}).setdefault(name, []).append(time.perf_counter() - began)
    lines = []
    for what, found in seconds.items():
        ours = found["ours"][1:]
        for name in found:
            if name != "ours":
                theirs = found[name][1:]
                each = [t / o for t, o in zip(theirs, ours)]
                ratio = statistics.median(theirs) / statistics.median(ours)
                lines.append(
                    f"| {what} | {name} | {statistics.median(theirs):.2f} s | {statistics.median(ours):.2f} s "
                    f"| {ratio:.2f} ({min(each):.2f} to {max(each):.2f}) |"
                )
    return lines


def memory(home: Path, server: Any, sizes: list[int]) -> list[str]:
    """Peak memory of a process that puts and gets a file, and of one that only imports what that needs."""
    lines = []
    for mib in (0, *sizes):
        source = random_file(home / "source", mib) if mib else None
        for where in ("folder", "S3"):
            url = str(home / f"memory{mib}") if where == "folder" else f"s3://{server.bucket}/memory{mib}"

            cache = home / f"cache{mib}"
            with tempfile.TemporaryFile("w+") as out:
                code = in_child(functools.partial(_there_and_back, url, cache, source, out))
                out.seek(0)
                lines.append(f"| {where} | {mib} MiB | {out.read() if code == 0 else 'failed'} |")
            shutil.rmtree(home / f"cache{mib}", ignore_errors=True)
            shutil.rmtree(home / f"memory{mib}", ignore_errors=True)
            if server is not None:
                shutil.rmtree(server.folder / f"memory{mib}", ignore_errors=True)
    return lines


def _there_and_back(url: str, cache: Path, source: Path | None, out: IO[str]) -> None:
    with open_store(url, cache=cache) as store:
        store.check_writable()
        if source:
            ref = put(store, source, "memory")
            shutil.rmtree(cache, ignore_errors=True)
            store.fetch(ref)
    out.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    out.flush()


def saves(home: Path, mib: int, repeats: int, server: Any) -> list[str]:
    """Seconds for which a save point of so many MiB holds up the work, beside it and waited for, on both kinds of store."""
    import torch

    from engine import checkpoint

    state = {f"parameter/{i}": torch.randn(CHUNK // 4 * max(1, mib // 8)) for i in range(8)}
    lines = []
    for where, url in (("folder", str(home / "saves")), ("S3", f"s3://{server.bucket}/saves")):
        found: dict[str, list[float]] = {}
        with open_store(url, cache=home / "saves-cache") as store:
            for turn in range(repeats):
                for way, runtime in (("beside", Runtime(save_seconds=1e-9)), ("waited for", Runtime(save_steps=1))):
                    points = store.save_points(Ref("model", "train", f"{turn:016x}"))
                    job = Job("train", None, {}, home, runtime, saves=points)
                    job._say = lambda **_: None  # type: ignore[method-assign]
                    job.save(1, lambda folder: checkpoint.write_tensors(folder / "model.safetensors", state) or {})  # type: ignore[func-returns-value]
                    found.setdefault(way, []).append(job._paused[-1])
                    job.close()
                    points.drop()
        medians = {way: statistics.median(values) for way, values in found.items()}
        spread = {way: f"{medians[way]:.2f} s ({min(v):.2f} to {max(v):.2f})" for way, v in found.items()}
        share = medians["beside"] / medians["waited for"]
        lines.append(f"| {where} | {mib} MiB | {spread['waited for']} | {spread['beside']} | {share:.2f} |")
    return lines


class Server:
    """`rclone serve s3` over a folder of its own, with generated keys in this process's environment."""

    def __init__(self, home: Path) -> None:
        import secrets
        import socket

        self.bucket, root = "benchmark", home / "s3"
        self.folder = root / self.bucket
        self.folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        key, secret = secrets.token_hex(8), secrets.token_hex(16)
        self.endpoint = f"http://127.0.0.1:{port}"
        os.environ.update(AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret, AWS_ENDPOINT_URL_S3=self.endpoint,
                          AWS_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true")  # fmt: skip
        self.process = subprocess.Popen(
            ["rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}", str(root)],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError("rclone serve s3 does not answer")


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server(home)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[64, 1024], help="MiB of the files whose memory is measured"
    )
    parser.add_argument("--only", nargs="*", default=["memory", "folder", "s3", "saves"])
    parser.add_argument("--home", help="where to work; a disk, not a file system in memory")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(dir=options.home) as name, serving(Path(name)) as server:
        home = Path(name)
        if "memory" in options.only:  # before this process has grown
            print("| store | file | peak memory of put and get |\n|---|---|---|")
            print("\n".join(memory(home, server, options.sizes)), flush=True)
        source = random_file(home / "source", options.mib)
        if {"folder", "s3"} & set(options.only):
            print(f"\n{options.mib} MiB, medians of {options.repeats}\n")
            print("| what | others | they | we | they / we |\n|---|---|---|---|---|", flush=True)
        if "folder" in options.only:
            print("\n".join(compare(on_a_folder(home, source), options.repeats)), flush=True)
        if "s3" in options.only:
            print("\n".join(compare(on_s3(home, source, server), options.repeats)), flush=True)
        if "saves" in options.only:
            print("\n| store | state | held up, waited for | held up, beside the work | share |\n|---|---|---|---|---|")
            print("\n".join(saves(home, options.mib, options.repeats, server)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
