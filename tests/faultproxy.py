"""A proxy in front of an S3 server that does to requests and answers what networks and servers do."""

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERRORS = {"503": (503, "SlowDown"), "500": (500, "InternalError"), "429": (429, "TooManyRequests")}
KINDS = ("503", "500", "429", "reset_before", "reset_after", "truncate", "slow")
FLIPS = ("flip_request", "flip_response")

Rule = Callable[[int, str, str], str | None]


def random_rule(share: float, seed: int, kinds: tuple[str, ...] = KINDS) -> Rule:
    """Return a rule that hits a share of all requests with faults drawn by a generator of its own."""
    draw, lock = random.Random(seed), threading.Lock()

    def rule(index: int, method: str, path: str) -> str | None:
        with lock:
            return draw.choice(kinds) if draw.random() < share else None

    return rule


class Proxy:
    """Forwards to `upstream`; `rule(index, method, path)` names the fault of each request, or None."""

    def __init__(self, upstream: str, rule: Rule | None = None) -> None:
        self.rule: Rule = rule or (lambda index, method, path: None)
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.hang = 1.5  # seconds without an answer; tests let the client wait less
        self.mutate: Callable[[bytes], bytes] = _flipped
        self.target: int | None = None  # the process that "kill_before" and "kill_after" end
        self._lock = threading.Lock()
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, method: str, path: str) -> str | None:
        with self._lock:
            index, self.requests = self.requests, self.requests + 1
        fault = self.rule(index, method, path)
        if fault:
            with self._lock:
                self.faults[fault] += 1
        return fault

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16  # headers and body in one packet: two would wait 40 ms for each other
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def handle_expect_100(self) -> bool:
                go_on = super().handle_expect_100()
                self.wfile.flush()
                return go_on

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding"):
                    raise AssertionError("the client sent a chunked body, which this proxy does not read")
                fault = proxy._fault(self.command, self.path)
                if fault in ERRORS:
                    status, code = ERRORS[fault]
                    return self._answer(status, [], f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode())
                if fault == "reset_before":
                    return self._reset()
                if fault == "kill_before":
                    return self._kill()
                if fault == "slow":
                    time.sleep(0.3)
                if fault == "hang":  # longer than the client waits
                    time.sleep(proxy.hang)
                    return self._reset()
                if fault == "flip_request" and body:
                    body = _flipped(body)
                status, headers, answer = self._forward(body)
                if fault == "reset_after":
                    return self._reset()
                if fault == "kill_after":
                    return self._kill()
                if fault == "drop_list" and b"<Contents>" in answer:
                    answer = re.sub(rb"<Contents>.*?</Contents>", b"", answer, count=1, flags=re.DOTALL)
                if fault == "error_200" and b"CompleteMultipartUploadResult" in answer:
                    answer = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>x</Message></Error>"
                if fault == "mutate" and answer:
                    answer = proxy.mutate(answer)
                if fault == "flip_response" and answer:
                    answer = _flipped(answer)
                self._answer(status, headers, answer, cut=fault == "truncate")

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                upstream = http.client.HTTPConnection(*proxy._upstream, timeout=60)
                try:
                    upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() not in ("connection", "expect"):
                            upstream.putheader(name, value)
                    upstream.endheaders(body)
                    answer = upstream.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                finally:
                    upstream.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                length = str(len(body))
                for name, value in headers:
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    elif name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                if cut:
                    self._reset()

            def _reset(self) -> None:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            def _kill(self) -> None:
                assert proxy.target is not None
                os.kill(proxy.target, signal.SIGKILL)
                self._reset()

        return Handler


def _flipped(body: bytes) -> bytes:
    """Return `body` with one bit flipped, at a place that depends on its content alone."""
    at = sum(body) % len(body)
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
