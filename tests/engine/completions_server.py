"""A small OpenAI-compatible completions server that samples with transformers: a stand-in where vLLM is not installed.

It answers what engine/vllm.py asks of vLLM (token ids in and out, log-probs of the tempered distribution, a seed for each
request) by a plain forward pass a token. It is no vLLM: tests/engine/test_vllm.py runs that too, where its environment is.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch


@contextmanager
def serving(folder: Path, *, flat: bool = False, broken: bool = False) -> Iterator[str]:
    """The URL of a server of the policy in `folder`.

    flat: it samples at temperature 1 whatever is asked. broken: it answers every request with an error.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"version": "0"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if broken:
                self._answer(500, {"error": "the engine is gone"})
                return
            with lock:
                self._answer(200, complete(model, asked | ({"temperature": 1.0} if flat else {})))

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@torch.inference_mode()
def complete(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """One completion."""
    generator = torch.Generator().manual_seed(asked["seed"])
    ids, said, values = list(asked["prompt"]), [], []
    reason = "length"
    while len(said) < asked["max_tokens"] and reason != "stop":
        spread = (model(torch.tensor([ids])).logits[0, -1].float() / asked["temperature"]).log_softmax(-1)
        token = int(torch.multinomial(spread.exp(), 1, generator=generator))
        ids.append(token)
        said.append(token)
        values.append(float(spread[token]))
        reason = "stop" if token in asked["stop_token_ids"] else "length"
    return {"choices": [{"token_ids": said, "logprobs": {"token_logprobs": values}, "finish_reason": reason}]}
