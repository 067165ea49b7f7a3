"""Body limits: by the declared length, and while bytes come without one."""

from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from server.api import limits
from server.api.app import create_app
from server.api.context import ServerContext
from server.settings import MIB
from tests.server.api.asgi import JSON, Exchange
from tests.server.api.fakes import FakeEngine


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/none"]
)
def test_a_declared_length_over_the_limit_is_refused_before_it_is_sent(
    context: ServerContext, path: str
) -> None:
    headers = [*JSON, (b"content-length", str(MIB + 1).encode()), (b"expect", b"100-continue")]
    exchange = Exchange(create_app(context), path, [b"x"], headers)
    asyncio.run(exchange.run())

    assert (exchange.status, exchange.error["code"]) == (413, "body_too_large")
    assert exchange.read == 0


def test_a_client_that_sends_at_once_can_send_all_and_read_the_answer(context: ServerContext) -> None:
    headers = [*JSON, (b"content-length", str(2 * MIB).encode())]
    exchange = Exchange(create_app(context), "/v1/completions", [b" " * MIB] * 2, headers)
    asyncio.run(exchange.run())

    assert exchange.status == 413
    assert exchange.read == 2 * MIB


def test_a_chunked_body_is_cut_off_at_the_limit(
    context: ServerContext, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DISCARD_BYTES", MIB)
    exchange = Exchange(create_app(context), "/v1/completions", [b" " * 65536] * 1000)
    asyncio.run(exchange.run())

    assert (exchange.status, exchange.error["code"]) == (413, "body_too_large")
    assert exchange.read <= 2 * MIB + 2 * 65536
    assert not engine.requests


def test_a_body_at_the_limit_is_read(client: TestClient) -> None:
    body = b'{"model": "tiny", "prompt": "hi"}'
    answer = client.post(
        "/v1/completions", content=body.ljust(MIB), headers={"content-type": "application/json"}
    )

    assert answer.status_code == 200


def test_uploads_have_a_limit_of_their_own(context: ServerContext) -> None:
    for size, status in ((2 * MIB, 415), (2 * MIB + 1, 413)):
        headers = [(b"content-length", str(size).encode())]
        exchange = Exchange(create_app(context), "/v1/adapters", [b"x"], headers)
        asyncio.run(exchange.run())
        assert exchange.status == status
