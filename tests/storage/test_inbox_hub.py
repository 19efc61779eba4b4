"""storage.inbox on the Hugging Face hub: the real client against a server that answers as the hub's API is documented."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "c" * 40
SCRIPT = """
import json, sys
from pathlib import Path
from storage import StorageError
from storage.inbox import Arrived, fetch, look
try:
    if sys.argv[2:]:
        fetch(sys.argv[1], Arrived(*json.loads(sys.argv[2])), Path(sys.argv[3]))
    else:
        print(json.dumps([[f.name, f.size, f.tag] for f in look(sys.argv[1])]))
except StorageError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Hub:
    """One dataset repository: what it holds can be changed between requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*hub.answer(unquote(urlsplit(self.path).path)))

            do_HEAD = do_GET

            def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        kind = {"Content-Type": "application/json"}
        if path in ("/api/datasets/own/texts", "/api/datasets/own/texts/revision/main"):
            return 200, json.dumps({"id": "own/texts", "sha": COMMIT, "siblings": []}).encode(), kind
        if path.startswith("/api/datasets/own/texts/tree/main"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                | (
                    {"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 9}}
                    if name.endswith("parquet")
                    else {}
                )
                for name, data in self.files.items()
            ]
            return 200, json.dumps(tree).encode(), kind
        name = path.removeprefix("/datasets/own/texts/resolve/main/")
        if name in self.files:
            data = self.files[name]
            return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return 404, b"{}", {**kind, "X-Error-Code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"}

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Look or fetch in a process of its own: the client reads the hub's address when it is imported."""
        host, port = self.server.server_address[:2]
        env = {**os.environ, "HF_ENDPOINT": f"http://{host!s}:{port}", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", SCRIPT, *words]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    made.files = {"README.md": b"about", "data/a.jsonl": b'{"text": "one"}\n', "data/b.parquet": b"PAR1"}
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_dataset_is_an_inbox_of_its_files(hub: Hub, tmp_path: Path) -> None:
    done = hub.ask("hf://datasets/own/texts@main")
    assert done.returncode == 0, done.stderr
    found = {name: (size, tag) for name, size, tag in json.loads(done.stdout)}
    assert set(found) == set(hub.files)
    data = hub.files["data/a.jsonl"]
    assert found["data/a.jsonl"] == (len(data), hashlib.sha1(data).hexdigest())
    assert found["data/b.parquet"] == (4, _sha256(b"PAR1"))  # a large file's content id is its SHA-256
    told = json.dumps(["data/a.jsonl", *found["data/a.jsonl"]])
    done = hub.ask("hf://datasets/own/texts@main", told, str(tmp_path / "copy"))
    assert done.returncode == 0 and (tmp_path / "copy").read_bytes() == data, done.stderr
    hub.files["data/a.jsonl"] = b'{"text": "two"}\n'
    done = hub.ask("hf://datasets/own/texts@main", told, str(tmp_path / "copy"))
    assert "Moved: hf://datasets/own/texts@main/data/a.jsonl: changed between listing and reading" in done.stderr
    del hub.files["data/a.jsonl"]
    done = hub.ask("hf://datasets/own/texts@main", told, str(tmp_path / "copy"))
    assert "data/a.jsonl: vanished between listing and reading" in done.stderr


def test_a_repository_that_is_not_there_is_one_line(hub: Hub) -> None:
    done = hub.ask("hf://datasets/own/nothing")
    assert done.stderr.startswith("StorageError: hf://datasets/own/nothing: ") and done.stderr.count("\n") == 1
    assert "check the name, the revision and the network" in done.stderr
