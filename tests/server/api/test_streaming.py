"""The framing of streams and what a failure looks like in one."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from server.api.streaming import event
from server.engine.request import EngineError, GenerationOutput
from tests.server.api.asgi import events
from tests.server.api.fakes import FakeEngine, FakeRegistry

BODY = {"model": "tiny", "prompt": "hi", "stream": True}


def test_an_event_is_one_line() -> None:
    assert event({"text": "a\nb\r\n\u2028"}) == 'data: {"text":"a\\nb\\r\\n\u2028"}\n\n'.encode()


def test_a_stream_is_not_buffered_by_proxies_and_ends_with_done(client: TestClient) -> None:
    answer = client.post("/v1/completions", json=BODY)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"] == events(answer.text)[0]["id"]
    assert events(answer.text)[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("error", "message"),
    [(EngineError("out of luck"), "out of luck"), (RuntimeError("secret"), "Internal server error.")],
)
def test_a_failure_midway_is_an_event_and_no_done(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, error: Exception, message: str
) -> None:
    engine.script = lambda request: [GenerationOutput(request.request_id, "he", (1,)), error]
    answer = client.post("/v1/completions", json=BODY)

    first, last = events(answer.text)
    assert first["choices"][0]["text"] == "he"
    assert message in last["error"]["message"]
    assert last["error"]["type"] == "server_error"
    assert "secret" not in answer.text
