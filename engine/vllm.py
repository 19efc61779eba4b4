"""vLLM as the sampler: its OpenAI-compatible server, in an environment of its own, asked with token ids.

The server is a child of the stage and dies with it; or it runs already, where `runtime.vllm` is a URL. A response's seed is a
hash of (seed, stream, prompt id, k), so that neither shards nor their order choose the tokens. What vLLM does not promise:
its kernels may round otherwise in another batch, and then a near tie between two tokens falls the other way.
"""

import hashlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from configs.recipes import Limits
from configs.runtime import Runtime
from engine import lifeline
from engine.batches import collate
from engine.errors import StageError
from engine.forwards import logps
from engine.generate import Generated, Key
from engine.models import load_policy

PATIENCE = 1800.0  # seconds in which the server must have loaded the model
BRIEF = 30.0  # seconds in which it must say that it is well; responses have PATIENCE
CHECKED = 32  # responses of each call whose log-probs the trainer's own forward computes too
NOISE = {"float32": 1e-3, "bfloat16": 0.05}  # mean difference of a log-prob that is rounding (METHODS 4.4, T40)
MOST_AT_ONCE = 512  # requests in flight
FINISH = {"stop": "eos", "length": "length"}


@contextmanager
def serve(
    folder: Path, chat: Any, runtime: Runtime, limits: Limits, beside: Path, log: Callable[[str], None]
) -> Iterator["Served"]:
    """The policy in `folder`, served until the end of the block.

    beside: a folder for the server's output.

    Raises:
        StageError: the server ended before it was ready, or did not become ready.
    """
    if runtime.vllm.startswith(("http://", "https://")):
        yield Served(Client(runtime.vllm, os.environ.get("VLLM_API_KEY", "")), folder, chat, runtime)
        return
    beside.mkdir(parents=True, exist_ok=True)
    path, key, port = beside / "vllm.log", secrets.token_hex(16), _free_port()
    room = limits.prompt_tokens + limits.response_tokens + len(chat.asks)
    client = Client(f"http://127.0.0.1:{port}", key, path)
    began = time.monotonic()
    with path.open("wb") as output:
        process = lifeline.start(command(folder, runtime, port, room), output=output, env=_environment(runtime, key))
        try:
            _wait(client, process, path)
            log(f"vLLM {client.ask('/version')['version']} is ready after {time.monotonic() - began:.0f} s")
            yield Served(client, folder, chat, runtime)
        finally:
            client.close()
            lifeline.end(process)


def command(folder: Path, runtime: Runtime, port: int, room: int) -> list[str]:
    """What starts the server: nothing of the model's generation config, log-probs as sampled from, `room` tokens a row."""
    found = [
        runtime.vllm, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "policy",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", stored_dtype(folder), "--generation-config", "vllm",
        "--logprobs-mode", "processed_logprobs", "--max-num-seqs", str(min(runtime.sample_rows, MOST_AT_ONCE)),
        "--max-model-len", str(min(room, positions(folder))), "--tensor-parallel-size", str(runtime.vllm_devices),
        "--seed", "0", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if runtime.device == "cpu":
        return [*found, "--enforce-eager", *runtime.vllm_options]
    share = max(0.3, 0.92 - _check_bytes(folder) / torch.cuda.get_device_properties(0).total_memory)
    return [*found, "--gpu-memory-utilization", f"{share:.2f}", *runtime.vllm_options]


def stored_dtype(folder: Path) -> str:
    """The dtype of a model's weights, as its config says."""
    config = _config(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def positions(folder: Path) -> int:
    """The longest row a model takes."""
    config = _config(folder)
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20)


def seed_of(seed: int, stream: str, key: Key) -> int:
    """A response's own seed: 63 bits of a hash of its name."""
    name = f"{seed}\x1f{stream}\x1f{key[0]}\x1f{key[1]}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


class Served:
    """A policy behind a server; called like `generate.generate` without model and chat."""

    def __init__(self, client: "Client", folder: Path, chat: Any, runtime: Runtime) -> None:
        self.client, self.folder, self.chat, self.runtime = client, folder, chat, runtime
        self.model: Any = None  # the trainer's, for the check
        self.gap = 0.0  # largest mean difference of a log-prob so far

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        *,
        seed: int,
        stream: str,
        temperature: float,
        max_new_tokens: int,
        rows: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Generated]:
        """One response to each prompt, in the order given.

        Raises:
            StageError: the server refused or ended, or its log-probs are not the trainer's.
        """
        if not prompts:
            return []
        shared = {
            "model": "policy", "temperature": temperature, "max_tokens": max_new_tokens, "top_p": 1.0, "top_k": 0,
            "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0, "return_token_ids": True,
            "return_tokens_as_token_ids": True, "ignore_eos": True, "stop_token_ids": [self.chat.eos_id],
        }  # fmt: skip

        def one(place: int) -> Generated:
            body = {**shared, "prompt": list(prompts[place]), "seed": seed_of(seed, stream, keys[place])}
            return _read(self.client.ask("/v1/completions", body))

        found: list[Generated] = []
        try:
            with ThreadPoolExecutor(min(rows, MOST_AT_ONCE, len(prompts))) as pool:
                for response in pool.map(one, range(len(prompts))):
                    found.append(response)
                    if progress:
                        progress(len(found), len(prompts))
        finally:
            self.client.close()
        self._check(prompts, found, temperature)
        return found

    def _check(self, prompts: Sequence[Sequence[int]], found: Sequence[Generated], temperature: float) -> None:
        """Compare some responses' log-probs with the trainer's (METHODS T40, T61)."""
        dtype = stored_dtype(self.folder)
        if self.model is None:
            self.model = load_policy(self.folder, _check_runtime(self.folder, self.runtime), dtype)  # type: ignore[arg-type]
        step = max(1, len(found) // CHECKED)
        chosen = range(0, len(found), step)
        padded = collate([(prompts[i], found[i].token_ids) for i in chosen], pad_id=self.chat.pad_id)
        padded = padded.to(self.model.device)
        with torch.inference_mode():
            own = logps(self.model, padded, temperature or 1.0)[padded.response_mask].cpu()
        said = torch.tensor([value for i in chosen for value in found[i].logps])
        gap = float((own - said).abs().mean())
        limit = NOISE.get(dtype, NOISE["bfloat16"])
        if not gap <= limit:
            raise StageError(
                f"vLLM and the trainer differ by {gap:.2e} a log-prob on {len(chosen)} responses (at most {limit:g} is "
                "rounding): the server has other weights, another temperature, or was started without "
                "--logprobs-mode processed_logprobs"
            )
        self.gap = max(self.gap, gap)


def _read(answer: dict[str, Any]) -> Generated:
    choice = answer["choices"][0]
    ids, values = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not ids or not values or len(ids) != len(values):
        raise StageError(
            f"vLLM answered with {len(ids or ())} token ids and {len(values or ())} log-probs, want as many of each; "
            "is it a server that knows return_token_ids?"
        )
    if choice["finish_reason"] not in FINISH:
        raise StageError(f"vLLM ended a response with {choice['finish_reason']!r}, want stop or length")
    return Generated(list(ids), FINISH[choice["finish_reason"]], [float(value) for value in values])


class Client:
    """One server; a connection for each thread that asks.

    output: where a server of ours writes, for messages.
    """

    def __init__(self, url: str, key: str, output: Path | None = None) -> None:
        self.url, self.key, self.output = urlsplit(url), key, output
        self.held, self.opened = threading.local(), list[http.client.HTTPConnection]()

    def close(self) -> None:
        """Close the connections of all threads; the next question opens one anew."""
        for connection in self.opened:
            connection.close()
        self.opened.clear()
        self.held = threading.local()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer to a GET, or to a POST of `body`.

        Raises:
            StageError: no answer, or one that is not 200.
        """
        if getattr(self.held, "connection", None) is None:
            kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
            self.held.connection = kind(self.url.netloc, timeout=PATIENCE)
            self.opened.append(self.held.connection)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection: http.client.HTTPConnection = self.held.connection
        data = None if body is None else json.dumps(body)
        connection.timeout = BRIEF if data is None else PATIENCE
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        try:
            connection.request("GET" if data is None else "POST", self.url.path.rstrip("/") + path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            ends = "" if self.output is None else f"; its output ends: {tail(self.output)}"
            raise StageError(f"vLLM's server did not answer ({error}){ends}") from error
        if answer.status != 200:
            raise StageError(f"vLLM's server answered {answer.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text) if text else {}  # type: ignore[no-any-return]


def tail(path: Path) -> str:
    """The last lines of a log that say something, on one line."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-600:] or "nothing"


def _wait(client: Client, process: subprocess.Popen[bytes], path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise StageError(f"vLLM's server ended with code {process.returncode}; its output ends: {tail(path)}")
        try:
            client.ask("/health")
            return
        except StageError:
            time.sleep(0.5)
    raise StageError(f"vLLM's server was not ready after {PATIENCE:.0f} s; its output ends: {tail(path)}")


def _environment(runtime: Runtime, key: str) -> dict[str, str]:
    """Ours without our modules, with nothing to be fetched or reported."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RANK", "WORLD_SIZE")}
    if runtime.device == "cpu":
        kept |= {"OMP_NUM_THREADS": str(runtime.threads)}
        kept.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return {**kept, "VLLM_API_KEY": key, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def _check_bytes(folder: Path) -> float:
    """Memory that the trainer's copy of the model takes for the check."""
    return 1.2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")) + 2**31


def _check_runtime(folder: Path, runtime: Runtime) -> Runtime:
    """Where the check runs: on a CPU where the model would take much of the device beside the server."""
    if runtime.device == "cuda" and _check_bytes(folder) > 0.4 * torch.cuda.get_device_properties(0).total_memory:
        return runtime.model_copy(update={"device": "cpu"})
    return runtime


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
