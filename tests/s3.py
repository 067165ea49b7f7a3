"""A local S3 server, moto's, over real HTTP; a bucket for each test; and a proxy that misbehaves."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

OWN_HEADERS = {"transfer-encoding", "connection", "content-length", "date", "server"}
"""Of the proxy, not passed on."""
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@cache
def server() -> str:
    """The URL of this process's S3 server, which ends with the process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    _read_service_models_once()
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    return f"http://{host}:{port}"


def _read_service_models_once() -> None:
    """Every new client of botocore parses megabytes of JSON, a fifth of a second each."""
    from botocore.loaders import JSONFileLoader  # type: ignore[import-untyped]

    read = cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = lambda self, path: read(path)


def set_environment(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What an operator would set: credentials, and where S3 is. Nothing else of the kind stays set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in environment(endpoint).items():
        patch.setenv(name, value)


def environment(endpoint: str) -> dict[str, str]:
    """The variables for a process of its own."""
    nothing = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    return KEYS | nothing | {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class S3Bucket:
    """A bucket, and boto3's own way into it, beside the code under test."""

    endpoint: str
    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}/blobs"

    def list(self) -> list[str]:
        """Keys of all objects, without the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [entry["Key"].removeprefix("blobs/") for page in pages for entry in page.get("Contents", [])]

    def key(self, ending: str) -> str:
        """The only key that ends so."""
        (found,) = [key for key in self.list() if key.endswith(ending)]
        return found

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.name, Key=f"blobs/{key}")["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"blobs/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"blobs/{key}")


@cache
def client() -> Any:
    """boto3's, of this process's server."""
    import boto3  # type: ignore[import-untyped]

    return boto3.client(
        "s3",
        endpoint_url=server(),
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


def new_bucket() -> S3Bucket:
    """An empty bucket on this process's server."""
    name = f"test-{uuid4().hex}"
    client().create_bucket(Bucket=name)
    return S3Bucket(server(), name, client())


@dataclass(frozen=True)
class Request:
    """What came to the proxy."""

    method: str
    path: str
    number: int
    body: bytes
    is_conditional: bool


@dataclass(frozen=True)
class Answer:
    """What the proxy answers itself. `status` 0: nothing, it closes the connection."""

    status: int


Misbehave = Callable[[Request], Answer | None]


class Proxy:
    """Stands before the S3 server; `misbehave` may answer in its place, or wait.

    Attributes:
        requests: all that came.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.requests: list[Request] = []
        self.misbehave: Misbehave = lambda request: None

    def count(self, method: str, ending: str = "") -> int:
        """Requests so far with this method, to a path that ends so."""
        return sum(r.method == method and urlsplit(r.path).path.endswith(ending) for r in self.requests)


@contextmanager
def proxy() -> Iterator[Proxy]:
    """A proxy before this process's S3 server."""
    upstream = urlsplit(server()).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            condition = "If-None-Match" in self.headers
            request = Request(self.command, self.path, len(front.requests), body, condition)
            front.requests.append(request)
            answer = front.misbehave(request)
            if answer is None:
                connection = HTTPConnection(upstream)
                connection.request(self.command, self.path, body, dict(self.headers))
                found = connection.getresponse()
                self._pass(found, found.read())
                connection.close()
            elif answer.status == 0:
                self.close_connection = True
            else:
                self.send_response(answer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _pass(self, found: HTTPResponse, data: bytes) -> None:
            self.send_response(found.status)
            for name, value in found.getheaders():
                if name.lower() not in OWN_HEADERS:
                    self.send_header(name, value)
            length = found.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that leave are part of what is tested."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        front = Proxy(listening.server_address[1])
        thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield front
        finally:
            listening.shutdown()
            thread.join()


def failing(times: int, status: int, only: Callable[[Request], bool] = lambda request: True) -> Misbehave:
    """The first so many requests that `only` picks are answered with `status` (0: the connection closes)."""
    left = [times]

    def misbehave(request: Request) -> Answer | None:
        if only(request) and left[0] > 0:
            left[0] -= 1
            return Answer(status)
        return None

    return misbehave


def slow(seconds: float) -> Misbehave:
    """Every answer waits so long."""

    def misbehave(request: Request) -> None:
        time.sleep(seconds)

    return misbehave
