"""How a key is sent, what is answered without one, and that no key is ever shown."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from starlette.testclient import TestClient

from adapters.registry.records import Quota
from server.api.app import create_app
from server.api.auth import duration
from server.api.context import ServerContext
from tests.server.api.asgi import Exchange
from tests.server.api.fake_access import FakeKeys, FakeTenants
from tests.server.api.fakes import FakeEngine, make_context

ADMIN = "an-operator's-secret"
SECRET = "secret-of-acme"
COMPLETIONS = "/v1/completions"


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    context = make_context(tmp_path)
    keys_of(context).give(SECRET, "use", tenant="acme")
    return context


def keys_of(context: ServerContext) -> FakeKeys:
    return cast(FakeKeys, context.registry.keys)


def quotas(context: ServerContext) -> dict[str, Quota]:
    return cast(FakeTenants, context.registry.tenants).quotas


def ask(client: TestClient, **headers: str) -> Any:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
    return client.post(
        COMPLETIONS, json=body, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {SECRET}"},
        {"authorization": f"bearer  {SECRET} "},
        {"x_api_key": SECRET},
        {"authorization": "Basic cHJveHk6cHJveHk=", "x_api_key": SECRET},
        {"authorization": "Bearer ", "x_api_key": SECRET},
        {"authorization": f"Bearer {SECRET}", "x_api_key": "another"},
    ],
)
def test_a_key_is_sent_as_bearer_token_or_by_itself(headers: dict[str, str], client: TestClient) -> None:
    assert ask(client, **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"authorization": f"Bearer {SECRET}x"},
        {"authorization": f"Bearer {SECRET} {SECRET}"},
        {"authorization": "Bearer another", "x_api_key": SECRET},
        {"x_api_key": SECRET.upper()},
        {"x_api_key": ""},
        {"cookie": f"api_key={SECRET}"},
    ],
)
def test_anything_else_is_a_401(headers: dict[str, str], client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, **headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "invalid_api_key",
        None,
    )
    assert not engine.requests
    assert client.post(f"{COMPLETIONS}?api_key={SECRET}", json={}).status_code == 401


def test_the_official_client_knows_the_errors(client: TestClient) -> None:
    def official(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url="http://testserver/v1", api_key=key, max_retries=0, http_client=client)

    assert official(SECRET).models.list().data[0].id == "tiny"
    with pytest.raises(openai.AuthenticationError) as caught:
        official("wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError) as refused:
        official(SECRET).get("/keys", cast_to=object)
    assert refused.value.code == "insufficient_scope"
    assert "`admin`" in refused.value.message


def test_no_key_is_shown_in_answers_logs_or_metrics(
    context: ServerContext, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "ml-0123456789ab-a-wrong-secret"
    with caplog.at_level(logging.DEBUG):
        answers = [
            ask(client, authorization=f"Bearer {wrong}"),
            ask(client, x_api_key=wrong),
            ask(client),
            client.get("/v1/keys", headers={"x-api-key": SECRET}),
            ask(client, x_api_key=SECRET),
        ]
    metrics = context.metrics.render().decode()
    everything = f"{caplog.text} {metrics} " + " ".join(f"{a.headers} {a.text}" for a in answers)
    assert wrong not in everything
    assert SECRET not in everything
    assert 'multilora_refused_keys_total{reason="invalid"} 2.0' in metrics
    assert 'multilora_refused_keys_total{reason="missing"} 1.0' in metrics


def test_a_refused_upload_is_not_read(context: ServerContext) -> None:
    """Nothing of a body reaches a handler whose caller is not known."""
    work = Exchange(create_app(context), "/v1/adapters", [b"x" * 1000] * 3, stays_open=True)
    asyncio.run(work.run())
    assert work.status == 401
    assert not context.uploads


def test_limits_and_origins_come_first(client: TestClient) -> None:
    assert client.post(COMPLETIONS, content=b"x" * (2 << 20)).status_code == 413
    cross = client.post(COMPLETIONS, json={}, headers={"sec-fetch-site": "cross-site"})
    assert (cross.status_code, cross.json()["error"]["code"]) == (403, "cross_site_request")


def test_the_admin_key_of_the_environment(tmp_path: Path) -> None:
    context = make_context(tmp_path, admin_key=ADMIN)
    with TestClient(create_app(context), raise_server_exceptions=False) as client:
        assert ask(client).status_code == 401
        assert ask(client, x_api_key=ADMIN).status_code == 200
        assert client.get("/metrics", headers={"x-api-key": ADMIN}).status_code == 200
        assert client.get("/health").status_code == 200


def test_the_first_key_counts_at_once_and_none_is_asked_before(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with TestClient(create_app(context), raise_server_exceptions=False) as client:
        assert ask(client, authorization="Bearer none").status_code == 200
        keys_of(context).give(SECRET, "use")
        assert ask(client, authorization="Bearer none").status_code == 401
        assert ask(client, authorization=f"Bearer {SECRET}").status_code == 200


def test_each_answer_of_a_limited_tenant_says_what_is_left(
    context: ServerContext, client: TestClient
) -> None:
    headers = {"x_api_key": SECRET}
    assert not [name for name in ask(client, **headers).headers if name.startswith("x-ratelimit")]
    quotas(context)["acme"] = Quota(tokens_per_minute=6000)
    answer = ask(client, **headers)  # two tokens of prompt, three of answer
    assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
    assert 5995 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 6000
    assert answer.headers["x-ratelimit-reset-tokens"].endswith("ms")
    assert (
        client.get("/v1/models", headers={"x-api-key": SECRET}).headers["x-ratelimit-limit-tokens"] == "6000"
    )
    assert "x-ratelimit-limit-tokens" not in client.get("/health").headers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.999, "60s"),
        (60, "1m0s"),
        (359.2, "6m0s"),
        (7200, "120m0s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
