"""Quotas of requests: places in flight and tokens a minute, over every way of asking and of leaving."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from adapters.registry.records import Quota
from server.access.budgets import Budgets
from server.api.app import create_app
from server.api.context import ServerContext
from server.engine.request import EngineError, QueueFull
from tests.server.api.asgi import Exchange
from tests.server.api.fake_access import FakeTenants
from tests.server.api.fakes import FakeEngine, make_context, say

TEXT = "/v1/completions"
ONE = {"model": "tiny", "prompt": "hi", "max_tokens": 5}
"""Two tokens of prompt and, by `say("hello")`, five of answer."""


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(context: ServerContext) -> Clock:
    clock = Clock()
    context.budgets = Budgets(context.registry.tenants.quota, clock)
    return clock


def limit(context: ServerContext, **quota: int) -> None:
    """A quota for the one tenant of a server without keys."""
    cast(FakeTenants, context.registry.tenants).quotas["default"] = Quota(**quota)


def spent(context: ServerContext) -> int:
    state = context.budgets.tokens("default")
    assert state is not None
    return state.limit - state.remaining


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        (TEXT, ONE, 2 + 5),
        (TEXT, {**ONE, "stream": True}, 2 + 5),
        (TEXT, {**ONE, "n": 3}, 2 + 15),
        (TEXT, {**ONE, "prompt": ["hi", "you"], "n": 2}, 2 + 3 + 20),
        (TEXT, {**ONE, "max_tokens": 2}, 2 + 2),
        (TEXT, {**ONE, "max_tokens": 0, "echo": True, "logprobs": 1}, 2),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}, 20 + 5),
        ("/v1/embeddings", {"model": "tiny", "input": ["hi", "you", "they"]}, 9),
    ],
)
def test_tokens_are_charged_as_usage_counts_them(
    path: str, body: dict[str, Any], tokens: int, context: ServerContext, client: TestClient, clock: Clock
) -> None:
    limit(context, tokens_per_minute=1000)
    answer = client.post(path, json=body)
    assert answer.status_code == 200
    if not body.get("stream"):
        usage = answer.json()["usage"]
        assert spent(context) == usage["total_tokens"]
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - usage["total_tokens"])
    if path != "/v1/chat/completions":
        assert spent(context) == tokens
    assert context.budgets.in_flight("default") == 0


def test_debt_is_a_429_that_says_when(context: ServerContext, client: TestClient, clock: Clock) -> None:
    limit(context, tokens_per_minute=6)  # one in ten seconds
    assert client.post(TEXT, json=ONE).status_code == 200  # one token of debt
    for path, body in (
        (TEXT, ONE),
        (TEXT, {**ONE, "stream": True}),
        ("/v1/embeddings", {"model": "tiny", "input": "x"}),
    ):
        refused = client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tokens_per_minute")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["retry-after"] == "11"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert refused.headers["x-ratelimit-reset-tokens"] == "1m10s"
    clock.now += 10
    assert client.post(TEXT, json=ONE).status_code == 429
    clock.now += 1
    assert client.post(TEXT, json=ONE).status_code == 200
    assert b'requests_total{adapter="base",outcome="rejected"} 4.0' in context.metrics.render()


def test_a_prompt_is_not_even_tokenized_for_a_tenant_in_debt(
    context: ServerContext, client: TestClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(context, tokens_per_minute=6)
    assert client.post(TEXT, json=ONE).status_code == 200

    def encode(*_: object, **__: object) -> None:
        raise AssertionError("tokenized")

    monkeypatch.setattr(context, "tokenizer", type("Tokenizer", (), {"__call__": encode, "encode": encode})())
    assert client.post(TEXT, json={**ONE, "prompt": "x" * 90}).status_code == 429
    assert client.post("/v1/embeddings", json={"model": "tiny", "input": "x"}).status_code == 429
    clock.now += 11
    assert client.post(TEXT, json=ONE).status_code == 500


def test_a_request_that_never_fits_is_refused_for_good(context: ServerContext, client: TestClient) -> None:
    limit(context, max_in_flight=3)
    refused = client.post(TEXT, json={**ONE, "prompt": ["a", "b"], "n": 2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "quota_exceeded")
    assert "4 answers at once; its tenant may have 3" in refused.json()["error"]["message"]
    assert client.post(TEXT, json={**ONE, "n": 3}).status_code == 200


def test_a_long_list_of_inputs_runs_within_the_places(
    context: ServerContext, client: TestClient, engine: FakeEngine
) -> None:
    limit(context, max_in_flight=3)
    assert client.post("/v1/embeddings", json={"model": "tiny", "input": ["x"] * 20}).status_code == 200
    assert engine.most_pooling == 3


def busy_exchange(context: ServerContext, body: dict[str, Any], path: str = TEXT) -> Exchange:
    return Exchange(create_app(context), path, [json.dumps(body).encode()])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, {**ONE, "n": 2}),
        (TEXT, {**ONE, "n": 2, "stream": True}),
        ("/v1/embeddings", {"model": "tiny", "input": ["a", "b"]}),
    ],
)
@pytest.mark.parametrize("leave", ["gone", "cancelled"])
def test_who_leaves_gives_its_places_back(
    path: str, body: dict[str, Any], leave: str, context: ServerContext, engine: FakeEngine
) -> None:
    limit(context, max_in_flight=2)
    engine.hang = True

    async def main() -> None:
        first = busy_exchange(context, body, path)
        task = asyncio.create_task(first.run())
        await asyncio.wait_for(engine.started.wait(), 5)
        await asyncio.sleep(0.02)
        assert context.budgets.in_flight("default") == 2
        second = busy_exchange(context, ONE)
        await second.run()
        assert (second.status, second.error["code"]) == (429, "tenant_busy")
        assert dict(second.messages[0]["headers"])[b"retry-after"] == b"1"
        if leave == "gone":
            first.gone.set()
        else:
            task.cancel()
        await asyncio.wait({task}, timeout=5)

    asyncio.run(main())
    assert context.budgets.in_flight("default") == 0


@pytest.mark.parametrize("error", [QueueFull("full"), EngineError("broken"), RuntimeError("unexpected")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_gives_its_places_back(
    error: Exception, stream: bool, context: ServerContext, engine: FakeEngine, client: TestClient
) -> None:
    limit(context, max_in_flight=2)
    engine.script = lambda request: [error]

    def fail(request: object) -> Any:
        raise error

    engine.pooled = fail
    for _ in range(3):
        assert client.post(TEXT, json={**ONE, "stream": stream, "n": 2}).status_code in (429, 500)
        assert client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]}).status_code in (
            429,
            500,
        )
    assert context.budgets.in_flight("default") == 0


def test_an_abort_pays_for_what_was_generated(
    context: ServerContext, engine: FakeEngine, clock: Clock
) -> None:
    """The fake engine says four of its five letters and then hangs."""
    limit(context, tokens_per_minute=1000)
    engine.hang = True

    async def main() -> None:
        work = busy_exchange(context, ONE)
        task = asyncio.create_task(work.run())
        await asyncio.wait_for(engine.started.wait(), 5)
        await asyncio.sleep(0.02)
        work.gone.set()
        await asyncio.wait({task}, timeout=5)

    asyncio.run(main())
    assert spent(context) == 2 + 4


def test_nothing_is_counted_for_what_never_ran(tmp_path: Path) -> None:
    context = make_context(tmp_path, say("hello"))
    context.budgets = Budgets(context.registry.tenants.quota, Clock())
    limit(context, tokens_per_minute=100, max_in_flight=1)
    with TestClient(create_app(context), raise_server_exceptions=False) as client:
        for body in ({**ONE, "model": "nobody"}, {**ONE, "n": 100}, {**ONE, "prompt": "x" * 500}):
            assert client.post(TEXT, json=body).status_code in (400, 404)
    assert spent(context) == 0
    assert context.budgets.in_flight("default") == 0
