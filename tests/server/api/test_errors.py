"""The shape of errors, and the status of each kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from adapters.errors import (
    AdapterConflict,
    AdapterError,
    AdapterForbidden,
    AdapterNotFound,
    AdapterTooLarge,
    InvalidAdapter,
    InvalidAlias,
    InvalidName,
    QuotaExceeded,
    RegistryUnavailable,
)
from server.api.context import ServerContext
from server.api.errors import MESSAGE_CHARS, APIError, from_adapter_error
from server.engine.request import EngineError, QueueFull
from tests.server.api.fakes import STATS, FakeEngine

BODY = {"model": "tiny", "prompt": "hi"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidAdapter("x"), 400),
        (AdapterTooLarge("x"), 413),
        (InvalidName("x"), 400),
        (InvalidAlias("x"), 400),
        (AdapterNotFound("x"), 404),
        (AdapterConflict("x"), 409),
        (AdapterForbidden("x"), 403),
        (QuotaExceeded("x"), 403),
    ],
)
def test_each_adapter_error_has_its_status(error: AdapterError, status: int) -> None:
    answer = from_adapter_error(error)

    assert (answer.status, answer.message) == (status, "x")


def test_where_the_registry_is_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    answer = from_adapter_error(RegistryUnavailable("postgresql://me@inside/x does not answer"))

    assert (answer.status, answer.code, answer.kind) == (503, "registry_unavailable", "server_error")
    assert "inside" not in answer.message
    assert "postgresql://me@inside/x does not answer" in caplog.text
    assert answer.response().headers["retry-after"] == "5"


def test_a_message_is_one_short_line() -> None:
    body = APIError(400, "a\nb  " + "c" * 5000).body()

    assert isinstance(body["error"], dict)
    assert body["error"]["message"].startswith("a b ccc")
    assert len(body["error"]["message"]) == MESSAGE_CHARS


def test_unknown_routes_and_methods(client: TestClient) -> None:
    missing, wrong = client.get("/v1/nothing"), client.get("/v1/completions")

    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_429_with_retry_after(client: TestClient, engine: FakeEngine, stream: bool) -> None:
    engine.script = lambda request: [QueueFull("1024 wait")]
    answer = client.post("/v1/completions", json={**BODY, "stream": stream, "n": 2})

    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.headers["retry-after"] == "1"
    assert not engine.running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [EngineError("no memory"), InvalidAdapter("file is damaged")])
def test_a_failing_engine_is_a_500(
    client: TestClient, engine: FakeEngine, stream: bool, error: Exception
) -> None:
    engine.script = lambda request: [error]
    answer = client.post("/v1/completions", json={**BODY, "stream": stream})

    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert str(error) in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_store_that_is_away_is_a_503(client: TestClient, engine: FakeEngine, stream: bool) -> None:
    engine.script = lambda request: [RegistryUnavailable("the blob store s3://inside failed")]
    answer = client.post("/v1/completions", json={**BODY, "stream": stream})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "registry_unavailable")
    assert "inside" not in answer.text


def test_a_dead_engine_is_a_503(client: TestClient, engine: FakeEngine) -> None:
    engine.current = replace(STATS, healthy=False)
    engine.script = lambda request: [EngineError("dead")]

    assert client.post("/v1/completions", json=BODY).status_code == 503


def test_an_unexpected_exception_shows_nothing_of_itself(client: TestClient, engine: FakeEngine) -> None:
    engine.script = lambda request: [RuntimeError("secret")]
    answer = client.post("/v1/completions", json=BODY)

    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "Internal server error.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/adapters"),
        ("DELETE", "/v1/adapters/x"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
    ],
)
def test_new_work_is_refused_while_draining(
    client: TestClient, context: ServerContext, method: str, path: str
) -> None:
    context.draining = True
    answer = client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in answer.headers
