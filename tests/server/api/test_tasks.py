"""Each model says which routes it serves; none answers what it was not trained for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from adapters.base import BaseKind
from server.api.context import ServerContext
from server.api.tasks import BY_KIND, BY_TASK, CHAT, CLASSIFY, COMPLETIONS, EMBEDDINGS, TOKEN_CLASSIFY
from tests.server.api.fakes import FakeEngine, FakeRegistry

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
    CLASSIFY: {"input": "hi"},
    TOKEN_CLASSIFY: {"input": "hi"},
    EMBEDDINGS: {"input": "hi"},
}


def ask(client: TestClient, route: str, model: str) -> tuple[int, str]:
    answer = client.post(route, json={"model": model, **BODIES[route]})
    if answer.status_code == 200:
        return 200, ""
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "unsupported_task")
    return answer.status_code, error["message"]


@pytest.mark.parametrize("kind", get_args(BaseKind))
@pytest.mark.parametrize("route", BODIES)
def test_kinds_of_bases(client: TestClient, context: ServerContext, kind: BaseKind, route: str) -> None:
    context.base = replace(context.base, kind=kind)
    status, message = ask(client, route, "tiny")

    headless = route in (CLASSIFY, TOKEN_CLASSIFY)
    assert status == (200 if route in BY_KIND[kind] and not headless else 400)
    if route not in BY_KIND[kind]:
        assert message.startswith(f"The base model `tiny` is an {kind}; with adapters trained for them")
    elif headless:
        assert "`tiny` has no head of its own to classify with; name an adapter" in message


def test_an_encoders_message(client: TestClient, context: ServerContext) -> None:
    context.base = replace(context.base, kind="encoder")
    expected = (
        "The base model `tiny` is an encoder; with adapters trained for them, it serves /v1/classify, "
        "/v1/token_classify and /v1/embeddings."
    )
    assert ask(client, CHAT, "tiny") == (400, expected)


@pytest.mark.parametrize("task", [*BY_TASK, "QUESTION_ANS"])
@pytest.mark.parametrize("route", BODIES)
def test_tasks_of_adapters(
    client: TestClient,
    engine: FakeEngine,
    registry: FakeRegistry,
    tmp_path: Path,
    task: str | None,
    route: str,
) -> None:
    registry.add("shop", tmp_path, task=task)
    served = [path for path in BY_TASK.get(task, (EMBEDDINGS,)) if path in BODIES]
    status, message = ask(client, route, "shop")

    assert status == (200 if route in served else 400)
    if status == 400:
        assert message.startswith(f"The adapter `shop@1` was trained for {task or 'no task'}")
        assert all(path in message for path in served)
        assert not engine.requests
        assert not engine.pooling
    assert not +registry.held


def test_a_classifier_that_is_asked_to_write(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("mood", tmp_path, task="SEQ_CLS")
    expected = "The adapter `mood@1` was trained for SEQ_CLS; it serves /v1/classify and /v1/embeddings."
    assert ask(client, CHAT, "mood") == (400, expected)


def test_an_adapter_without_a_task_on_an_encoder(
    client: TestClient, context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    context.base = replace(context.base, kind="encoder")
    registry.add("shop", tmp_path)
    assert ask(client, EMBEDDINGS, "shop")[0] == 200
    expected = "The adapter `shop@1` was trained for no task that its config names; it serves /v1/embeddings."
    assert ask(client, CLASSIFY, "shop") == (400, expected)


def test_an_adapter_that_its_base_can_not_serve(
    client: TestClient, context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    context.base = replace(context.base, kind="encoder-decoder")
    registry.add("shop", tmp_path, task="SEQ_CLS")
    expected = "The adapter `shop@1` was trained for SEQ_CLS; this encoder-decoder can't serve it."
    assert ask(client, COMPLETIONS, "shop") == (400, expected)
