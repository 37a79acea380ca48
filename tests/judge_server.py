"""A small chat endpoint on this machine, in the place of MT-Bench's judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

GUARD_LOG = "ADALORA_BENCH_TEST_SOCKET_LOG"
KEY = "sk-not-a-real-key-0123"


class Server(HTTPServer):
    """Answers from a script of (status, headers, body), then with grade 7; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, dict[str, str], str]] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        self.server.headers.append(dict(self.headers))
        self.server.paths.append(self.path)
        status, headers, text = self.server.script.pop(0) if self.server.script else (200, {}, reply("[[7]]"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        """What a followed redirect would ask."""
        self.server.paths.append(f"GET {self.path}")
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


def reply(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # The guard of these tests knows no exception for this machine; without its log it lets everything pass.
    monkeypatch.delenv(GUARD_LOG)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()
