"""Every route of the server says what a caller needs for it; one without a rule answers nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from adapters.registry.records import SCOPES, Scope
from server.access.rules import RULES, find_rule, shape
from server.api.app import create_app
from tests.server.api.fake_access import FakeKeys
from tests.server.api.fakes import make_context

KEYS: dict[Scope, str] = {scope: f"{scope}-secret" for scope in SCOPES}


def make_app(folder: Path) -> FastAPI:
    """The real application, whose registry has a key for each scope."""
    context = make_context(folder)
    keys = context.registry.keys
    assert isinstance(keys, FakeKeys)
    for scope, secret in KEYS.items():
        keys.give(secret, scope)
    return create_app(context)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return make_app(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def routes(app: FastAPI) -> set[str]:
    """Each method of each route, mounted applications and generated pages included."""
    found = set()
    for route in iter_route_contexts(app.routes):
        assert route.path is not None, f"{route.route} has no path: it can't have a rule"
        # What has no methods of its own, such as a folder of files, answers any.
        for method in getattr(route, "methods", None) or ("GET", "HEAD", "POST"):
            found.add(f"{method} {shape(route.path)}")
    return found


def test_every_route_has_a_rule(app: FastAPI) -> None:
    without = {route for route in routes(app) if find_rule(*route.split(" ", 1)) is None}
    assert not without, f"say in server/access/rules.py which scope these take: {sorted(without)}"


def test_every_rule_has_a_route(app: FastAPI) -> None:
    """A rule that nothing is behind was misspelt, or is for what was taken away."""
    assert {shape(rule) for rule in RULES} - routes(app) == set()


def path(rule: str) -> str:
    """A path that the route of `rule` answers."""
    return shape(rule.partition(" ")[2]).replace("{}", "nothing")


@pytest.mark.parametrize("rule", RULES)
def test_a_route_opens_to_its_scope_and_to_operators_alone(rule: str, client: TestClient) -> None:
    method, needed = rule.partition(" ")[0], RULES[rule]
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        answer = client.request(method, path(rule), headers=headers)
        if needed == "public":
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    for scope, secret in KEYS.items():
        answer = client.request(method, path(rule), headers={"authorization": f"Bearer {secret}"})
        refused = answer.status_code == 403 and answer.json()["error"]["code"] == "insufficient_scope"
        assert refused == (scope not in (needed, "operator") and needed != "public")
        assert answer.status_code != 401
        if refused:
            assert f"`{needed}`" in answer.json()["error"]["message"]
            assert f'scope="{needed}"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "get"]
)
@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/redoc",
        "/openapi.json",
        "/docs/oauth2-redirect",
        "/console",
        "/",
        "//v1/models",
        "/v1/models/",
        "/V1/models",
        "/v1/%6dodels/../keys",
        "/health/..",
        "/health/",
        "/metrics/x",
        "/nothing",
    ],
)
def test_what_is_no_route_is_told_to_nobody_without_a_key(method: str, path: str, client: TestClient) -> None:
    answer = client.request(method, path, follow_redirects=False)
    assert answer.status_code == 401


def test_a_route_without_a_rule_answers_nobody(tmp_path: Path) -> None:
    """However it came to the application: the router's own, a plain one, a mounted application."""
    app, reached = make_app(tmp_path), []

    async def secret(request: object) -> PlainTextResponse:
        reached.append(request)
        return PlainTextResponse("secret")

    app.get("/v1/forgotten")(lambda: reached.append("forgotten"))
    app.routes.append(Route("/plain", secret))
    app.routes.append(Mount("/mounted", Starlette(routes=[Route("/below", secret)])))
    app.mount("/mounted-too", Starlette(routes=[Route("/{rest:path}", secret)]))
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in ("/v1/forgotten", "/plain", "/mounted/below", "/mounted-too/below"):
            for secret_key in KEYS.values():
                for method in ("GET", "HEAD"):
                    answer = client.request(method, path, headers={"x-api-key": secret_key})
                    assert answer.status_code in (403, 405), path
            assert client.get(path).status_code == 401
    assert reached == []


def test_without_keys_too(tmp_path: Path) -> None:
    app = create_app(make_context(tmp_path))
    app.get("/v1/forgotten")(lambda: "secret")
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/v1/forgotten")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_rule")
        assert client.get("/v1/models").status_code == 200


def test_a_websocket_is_refused(client: TestClient) -> None:
    for headers in ({}, {"authorization": f"Bearer {KEYS['operator']}"}):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/models", headers=headers):
            pass
