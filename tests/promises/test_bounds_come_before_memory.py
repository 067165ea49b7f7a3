"""Law 8: what is over a bound is a 4xx before anything of its size is allocated, and the server goes on."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.spawn import start_server, stop_server
from training.base import ADAPTERS_DIR

MIB = 1024**2
CONFIG = json.loads((ADAPTERS_DIR / "shout" / "adapter_config.json").read_bytes())
WEIGHTS = (ADAPTERS_DIR / "shout" / "adapter_model.safetensors").read_bytes()
TERABYTES = 2**43
FEW = 8 * MIB
"""What a refusal may take: its own message, and what Python and the C library keep for later."""

PARSED = 20
"""Bytes of Python objects for each byte of a JSON body, which has a bound of its own."""


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

    def highest(self) -> int:
        """The most memory in bytes that the process has ever held at once."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def ask(self, **fields: object) -> httpx.Response:
        body = {"model": "base", "prompt": "a", "max_tokens": 1, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)

    def upload(self, config: object = CONFIG, weights: bytes = WEIGHTS) -> httpx.Response:
        files = {"config": json.dumps(config).encode(), "weights": weights}
        return httpx.post(f"{self.url}/v1/adapters", data={"name": "shop"}, files=files, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has answered and published, so that what comes after takes nothing for the first time."""
    folder = tmp_path_factory.mktemp("server")
    arguments = ["--port", "0", "--data-dir", str(folder / "data"), "--max-adapter-mb", "4"]
    process, url = start_server(arguments, folder / "log", environment={"OMP_NUM_THREADS": "1"})
    try:
        server = Server(url, process.pid)
        assert server.upload().status_code == 201
        for fields in ({"model": "shop"}, {"n": 10**9}, {"prompt": "a" * 4 * MIB}):
            server.ask(**fields)
        yield server
    finally:
        stop_server(process)


def safetensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(*shape: int) -> dict[str, Any]:
    size = 4
    for extent in shape:
        size *= extent
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ({}, safetensors({KEY: tensor(8, TERABYTES // 32)}, bytes(64))),
        ({}, safetensors({KEY: tensor(2**40, 2**40)}, bytes(64))),
        ({}, struct.pack("<Q", TERABYTES) + b"{}"),
        ({}, struct.pack("<Q", 2**64 - 1) + b"{}"),
        ({}, WEIGHTS + bytes(5 * MIB)),
        ({"r": 10**12}, WEIGHTS),
        ({"rank_pattern": {"q_proj": 10**12}}, WEIGHTS),
        ({"target_modules": ["q_proj"] * 200_000}, WEIGHTS),
    ],
    ids=["tensor", "product", "header", "header of 64 bits", "file", "rank", "rank_pattern", "config"],
)
def test_an_adapter_that_claims_terabytes(server: Server, config: dict[str, Any], weights: bytes) -> None:
    before = server.highest()
    try:
        answer = server.upload(CONFIG | config, weights)
    except (httpx.WriteError, httpx.RemoteProtocolError):
        answer = None  # refused while it was still being sent, and the connection closed
    if answer is not None:
        assert 400 <= answer.status_code < 500
    assert server.highest() - before < FEW
    assert server.ask().status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**9},
        {"best_of": 10**9},
        {"max_tokens": 10**12},
        {"min_tokens": 10**12},
        {"logprobs": 10**9},
        {"stop": ["x"] * 100_000},
        {"stop": "x" * MIB},
        {"stop_token_ids": list(range(100_000))},
        {"logit_bias": {str(index): 1 for index in range(100_000)}},
        {"logit_bias": {str(10**12): 1}},
        {"prompt": [10**12]},
        {"prompt": ["a"] * 100_000},
        {"prompt": [[1]] * 100_000},
        {"prompt": [1] * 500_000},
        {"prompt": "a" * 4 * MIB},
        {"model": "a" * MIB},
    ],
    ids=lambda fields: f"{next(iter(fields))} {str(next(iter(fields.values())))[:12]}",
)
def test_a_request_for_more_than_there_is(server: Server, fields: dict[str, object]) -> None:
    before = server.highest()
    answer = server.ask(**fields)

    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 4096
    assert server.highest() - before < FEW + PARSED * len(json.dumps(fields))
    assert server.ask().status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/adapters"])
def test_a_body_of_declared_terabytes_is_not_waited_for(server: Server, path: str) -> None:
    before = server.highest()
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {TERABYTES}\r\n\r\n".encode()
        )
        started = time.monotonic()
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - started < 5
    assert server.highest() - before < FEW
