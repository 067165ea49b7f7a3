"""One request's inputs run together, are freed together, and are counted once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from adapters.errors import InvalidAdapter
from server.api.app import create_app
from server.api.context import ServerContext
from server.engine.request import EngineError, PoolingOutput, PoolingRequest, QueueFull
from tests.server.api.asgi import Exchange
from tests.server.api.fakes import FakeEngine, FakeRegistry, make_context, pooled

PATH = "/v1/embeddings"


def count(context: ServerContext, outcome: str) -> bool:
    line = f'multilora_requests_total{{adapter="shop@1",outcome="{outcome}"}} 1.0'
    return line.encode() in context.metrics.render()


def test_many_inputs_run_a_few_at_a_time_and_come_back_in_order(tmp_path: Path) -> None:
    context = make_context(tmp_path, max_running=3)
    engine = cast(FakeEngine, context.engine)
    engine.pooled = lambda request: PoolingOutput(request.request_id, ((float(request.prompt[0]),),))
    with TestClient(create_app(context)) as client:
        inputs = [[i] for i in range(20)]
        body = client.post(PATH, json={"model": "tiny", "input": inputs, "normalize": False}).json()

    assert [entry["embedding"] for entry in body["data"]] == [[float(i)] for i in range(20)]
    assert engine.most_pooling == 3
    text = context.metrics.render().decode()
    assert 'multilora_pooled_inputs_total{task="embed"} 20.0' in text
    assert 'multilora_requests_total{adapter="base",outcome="success"} 1.0' in text
    assert "multilora_request_duration_seconds_count 1.0" in text


def test_large_answers_are_rendered_in_a_thread(client: TestClient, engine: FakeEngine) -> None:
    engine.pooled = lambda request: PoolingOutput(request.request_id, ((1.0,) * 70_000,))
    answer = client.post(PATH, json={"model": "tiny", "input": "hi", "dimensions": 4, "normalize": False})
    assert answer.json()["data"][0]["embedding"] == [1.0] * 4
    assert client.post(PATH, json={"model": "tiny", "input": "hi", "dimensions": 70_001}).status_code == 400


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (QueueFull("full"), 429, "rejected"),
        (EngineError("broke"), 500, "error"),
        (InvalidAdapter("damaged"), 500, "error"),
        (RuntimeError("bug"), 500, "error"),
    ],
)
def test_one_failing_input_frees_the_others(
    client: TestClient,
    context: ServerContext,
    engine: FakeEngine,
    registry: FakeRegistry,
    tmp_path: Path,
    error: Exception,
    status: int,
    outcome: str,
) -> None:
    registry.add("shop", tmp_path)

    def fail(request: PoolingRequest) -> PoolingOutput:
        if request.prompt == (98,):
            raise error
        return pooled(request)

    engine.pooled = fail
    answer = client.post(PATH, json={"model": "shop", "input": ["a", "b", "c"]})

    assert answer.status_code == status
    assert not engine.running
    assert not +registry.held
    assert count(context, outcome)


def test_a_refusal_after_the_engines_answer_counts_as_one(
    client: TestClient, context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    assert client.post(PATH, json={"model": "shop", "input": "a", "dimensions": 9}).status_code == 400
    assert count(context, "rejected")
    assert not +registry.held


@pytest.mark.parametrize("leave", [lambda work, task: work.gone.set(), lambda work, task: task.cancel()])
def test_a_client_that_leaves_aborts_every_input(
    context: ServerContext,
    engine: FakeEngine,
    registry: FakeRegistry,
    tmp_path: Path,
    leave: Callable[[Exchange, asyncio.Task[None]], Any],
) -> None:
    registry.add("shop", tmp_path)
    engine.hang = True
    body = json.dumps({"model": "shop", "input": ["a", "b", "c"]}).encode()
    work = Exchange(create_app(context), PATH, [body])

    async def main() -> None:
        task = asyncio.create_task(work.run())
        await asyncio.wait_for(engine.started.wait(), 5)
        leave(work, task)
        await asyncio.wait({task}, timeout=5)
        assert task.done()

    asyncio.run(main())
    assert len(engine.aborted) == 3
    assert not engine.running
    assert not +registry.held
    assert count(context, "aborted")


def test_a_draining_server_takes_nothing_new(client: TestClient, context: ServerContext) -> None:
    context.draining = True
    for path in (PATH, "/v1/classify", "/v1/token_classify"):
        assert client.post(path, json={"model": "tiny", "input": "a"}).status_code == 503


def test_unknown_models(client: TestClient) -> None:
    answer = client.post(PATH, json={"model": "nobody", "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("kind", "pooling"), [("decoder", "last"), ("encoder", "cls")])
def test_the_pooling_that_a_kind_of_base_is_trained_for(
    client: TestClient, context: ServerContext, engine: FakeEngine, kind: Any, pooling: str
) -> None:
    context.base = replace(context.base, kind=kind)
    assert client.post(PATH, json={"model": "tiny", "input": "a"}).status_code == 200
    assert engine.pooling[0].pooling == pooling
