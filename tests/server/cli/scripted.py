"""A real HTTP server on this machine whose answers a test scripts; it keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request. `path` is as it was sent, still quoted; `query` has the first value of each name."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """`body`: bytes as they are, else JSON. `length`: a false content-length. `drop`: no answer."""

    status: int = 200
    body: Any = field(default_factory=lambda: {"object": "nothing"})
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    drop: bool = False


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as the API has it."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Answer(status, {"error": error}, headers)


class Scripted:
    """`answers` are given in turn, the last one for ever; or what `route` has for a method and a path."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: list[Answer] = []
        self.route: dict[str, Answer | Callable[[Asked], Answer]] = {}
        self.url = ""

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        found = self.route.get(f"{asked.method} {asked.path}")
        if found is not None:
            return found(asked) if callable(found) else found
        if not self.answers:
            return refusal(404, f"Unknown request URL: {asked.method} {asked.path}.", "unknown_url")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def last(self) -> Asked:
        return self.asked[-1]


@contextmanager
def scripted() -> Iterator[Scripted]:
    """A server on a free port of the loopback address, for the length of a `with`."""
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = script.answer(Asked(self.command, parts.path, query, headers, body))
            self.close_connection = True
            if answer.drop:
                return
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(content) if answer.length is None else answer.length))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
