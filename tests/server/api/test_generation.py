"""A client that goes away frees everything, whatever the request was doing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.api.app import create_app
from server.api.context import ServerContext
from tests.server.api.asgi import Exchange
from tests.server.api.fakes import FakeEngine, FakeRegistry, say


def exchange(context: ServerContext, **fields: Any) -> Exchange:
    body = json.dumps({"model": "shop", "prompt": "hi", "n": 3, **fields}).encode()
    return Exchange(create_app(context), "/v1/completions", [body])


def run(work: Exchange, engine: FakeEngine, leave: Callable[[asyncio.Task[None]], object]) -> None:
    async def main() -> None:
        task = asyncio.create_task(work.run())
        await asyncio.wait_for(engine.started.wait(), 5)
        await asyncio.sleep(0.02)
        leave(task)
        await asyncio.wait({task}, timeout=5)
        assert task.done()

    asyncio.run(main())


def assert_all_free(context: ServerContext, engine: FakeEngine, registry: FakeRegistry) -> None:
    assert not engine.running
    assert len(engine.aborted) == len(engine.requests) == 3
    assert not +registry.held
    assert b'multilora_requests_total{adapter="shop@1",outcome="aborted"} 1.0' in context.metrics.render()


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_aborts_every_sequence(
    context: ServerContext, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path, stream: bool
) -> None:
    registry.add("shop", tmp_path)
    engine.hang = True
    work = exchange(context, stream=stream)
    run(work, engine, lambda task: work.gone.set())

    assert_all_free(context, engine, registry)
    if not stream:
        assert work.status == 499


def test_a_disconnect_before_the_first_token_aborts_a_stream(
    context: ServerContext, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    engine.hang, engine.script = True, say("")
    work = exchange(context, stream=True)
    run(work, engine, lambda task: work.gone.set())

    assert_all_free(context, engine, registry)
    assert work.status == 499


def test_a_disconnect_while_a_chunk_is_being_sent_aborts(
    context: ServerContext, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    engine.hang = True
    work = exchange(context, stream=True)
    work.hold_sends = True
    run(work, engine, lambda task: work.gone.set())

    assert_all_free(context, engine, registry)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_handler_aborts(
    context: ServerContext, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path, stream: bool
) -> None:
    registry.add("shop", tmp_path)
    engine.hang = True
    work = exchange(context, stream=stream)
    run(work, engine, lambda task: task.cancel())

    assert_all_free(context, engine, registry)


def test_one_failing_sequence_aborts_the_others(
    context: ServerContext, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    engine.script = lambda request: (
        [RuntimeError("x")] if request.request_id.endswith("-1") else say("y" * 50)(request)
    )
    with pytest.raises(RuntimeError):
        asyncio.run(exchange(context, max_tokens=50).run())

    assert not engine.running
    assert not +registry.held
    assert b'outcome="error"} 1.0' in context.metrics.render()
    assert len(engine.aborted) == 2
