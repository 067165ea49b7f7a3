"""Shadow copies: beside the answer, never in its way, and thrown away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from adapters.registry.records import AdapterVersion, Target
from server.api.app import create_app
from server.api.context import ServerContext
from server.api.shadow import MOST, stop_shadows
from server.engine.request import GenerationOutput, GenerationRequest, QueueFull
from tests.server.api.asgi import Exchange
from tests.server.api.fakes import STATS, FakeEngine, FakeRegistry, make_context, say

TEXT = "/v1/completions"
Pair = tuple[AdapterVersion, AdapterVersion]


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    context = make_context(tmp_path / "data")
    cast(FakeEngine, context.engine).current = replace(STATS, waiting=0)
    return context


@pytest.fixture
def pair(registry: FakeRegistry, tmp_path: Path) -> Pair:
    """`shop@1` answers to `shop`, and `shop@2` is its shadow."""
    versions = registry.add("shop", tmp_path), registry.add("shop", tmp_path)
    registry.set_alias("shop", "default", [Target(1)], shadow=2)
    return versions


def run(
    context: ServerContext, *bodies: dict[str, Any], path: str = TEXT, wait: bool = True
) -> list[httpx.Response]:
    """The answers to `bodies`, sent one after another; then waits for their copies."""

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            answers = [await client.post(path, json=body) for body in bodies]
        if wait:
            async with asyncio.timeout(5):
                await asyncio.gather(*context.shadows)
        await stop_shadows(context)
        return answers

    return asyncio.run(main())


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "shop", "prompt": "hi", "temperature": 0, **fields}


def counted(context: ServerContext) -> dict[str, float]:
    """Shadow metrics by the value of their last label."""
    return {
        line.rpartition('="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in context.metrics.render().decode().splitlines()
        if line.startswith(("multilora_shadow_requests_total{", "multilora_shadow_agreement_total{"))
    }


def by_digest(answers: dict[str, str]) -> Callable[[GenerationRequest], Any]:
    return lambda request: say(answers[request.adapter or ""])(request)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("second", "verdict"), [("hello", "same"), ("hallo", "different")])
def test_the_copy_is_answered_beside_and_compared(
    context: ServerContext,
    engine: FakeEngine,
    registry: FakeRegistry,
    pair: Pair,
    second: str,
    verdict: str,
    stream: bool,
) -> None:
    engine.script = by_digest({pair[0].digest: "hello", pair[1].digest: second})
    (answer,) = run(context, body(stream=stream, logprobs=2, seed=7))

    assert answer.headers["x-adapter"] == "shop@1"
    assert counted(context) == {"success": 1, verdict: 1}
    assert b'adapter="shop@2",outcome="success"' in context.metrics.render()
    primary, copy = engine.requests
    assert copy == replace(
        primary,
        request_id=f"shadow-{primary.request_id}",
        adapter=pair[1].digest,
        sampling=replace(primary.sampling, logprobs=None),
    )
    assert b'multilora_requests_total{adapter="shop@2"' not in context.metrics.render()
    assert not +registry.held
    assert not engine.aborted


def test_chat_is_copied_too_and_only_once_however_many_answers_are_asked(
    context: ServerContext, engine: FakeEngine, pair: Pair
) -> None:
    chat = {"model": "shop", "messages": [{"role": "user", "content": "hi"}], "n": 3, "temperature": 0}
    run(context, chat, path="/v1/chat/completions")
    run(context, body(prompt=["a", "b"]))
    assert [request.adapter for request in engine.requests].count(pair[1].digest) == 2
    assert counted(context) == {"success": 2, "same": 2}


def test_sampled_answers_are_not_compared(context: ServerContext, pair: Pair) -> None:
    run(context, body(temperature=1))
    assert counted(context) == {"success": 1}


@pytest.mark.parametrize(
    "asked",
    [
        body(model="tiny"),
        body(model="shop@1"),
        body(model="tiny", adapters=[{"name": "shop", "scale": 0.5}]),
        body(max_tokens=0, echo=True),
    ],
)
def test_what_is_not_copied(context: ServerContext, engine: FakeEngine, pair: Pair, asked: Any) -> None:
    assert run(context, asked)[0].status_code == 200
    assert len(engine.requests) == 1
    assert counted(context) == {}


def test_what_can_not_be_copied_is_skipped(
    context: ServerContext, engine: FakeEngine, registry: FakeRegistry, pair: Pair, tmp_path: Path
) -> None:
    engine.current = replace(STATS, waiting=1)
    run(context, body())
    engine.current = replace(STATS, waiting=0)
    registry.add("shop", tmp_path, task="SEQ_CLS")
    registry.set_alias("shop", "default", [Target(1)], shadow=3)
    run(context, body())
    assert len(engine.requests) == 2
    assert counted(context) == {"skipped": 1}  # of each version
    assert context.metrics.render().count(b'outcome="skipped"') == 2


@pytest.mark.parametrize(("error", "outcome"), [(RuntimeError("x"), "error"), (QueueFull("full"), "skipped")])
def test_a_copy_that_fails_fails_alone(
    context: ServerContext,
    engine: FakeEngine,
    registry: FakeRegistry,
    pair: Pair,
    error: Exception,
    outcome: str,
) -> None:
    engine.script = lambda request: [error] if request.adapter == pair[1].digest else say("hello")(request)
    answers = run(context, body(), body(stream=True))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["choices"][0]["text"] == "hello"
    assert counted(context) == {outcome: 2}
    assert not +registry.held


def test_a_version_that_is_gone_is_an_error_of_the_copy_alone(
    context: ServerContext, registry: FakeRegistry, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = registry.hold

    def gone(digest: str) -> None:
        if digest == pair[1].digest:
            registry.resolve("gone")
        hold(digest)

    monkeypatch.setattr(registry, "hold", gone)
    assert run(context, body())[0].status_code == 200
    assert counted(context) == {"error": 1}
    assert not +registry.held


class Slow(FakeEngine):
    """Copies never end by themselves."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationOutput, None]:
        if request.request_id.startswith("shadow-"):
            self.requests.append(request)
            self.running.add(request.request_id)
            try:
                await asyncio.sleep(3600)
            finally:
                self.running.discard(request.request_id)
        async for output in super().generate(request):
            yield output


def test_no_answer_waits_for_a_copy_and_few_run_at_one_time(
    context: ServerContext, registry: FakeRegistry, pair: Pair
) -> None:
    engine = Slow(say("hello"))
    engine.current = replace(STATS, waiting=0)
    context.engine = engine
    answers = run(context, *(body() for _ in range(MOST + 3)), wait=False)

    assert all(answer.status_code == 200 for answer in answers)
    assert sum(request.request_id.startswith("shadow-") for request in engine.requests) == MOST
    assert counted(context) == {"skipped": 3, "aborted": MOST}  # when the server stops
    assert not engine.running
    assert not +registry.held


def test_a_client_that_goes_away_ends_the_copy(
    context: ServerContext, registry: FakeRegistry, pair: Pair
) -> None:
    engine = Slow(say("hello"))
    engine.current, engine.hang = replace(STATS, waiting=0), True
    context.engine = engine

    async def main() -> None:
        exchange = Exchange(create_app(context), TEXT, [json.dumps(body()).encode()])
        task = asyncio.create_task(exchange.run())
        await asyncio.wait_for(engine.started.wait(), 5)
        assert len(engine.running) == 2
        exchange.gone.set()
        await task
        async with asyncio.timeout(5):
            await asyncio.gather(*context.shadows)

    asyncio.run(main())
    assert counted(context) == {"aborted": 1}
    assert not engine.running
    assert not +registry.held
