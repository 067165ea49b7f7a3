"""Pages of other origins, and names that are not the server's."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.api.app import create_app
from server.api.context import ServerContext
from server.api.origins import allowed_hosts
from server.settings import Settings
from tests.server.api.fakes import FakeRegistry, make_context

BODY = {"model": "tiny", "prompt": "hi"}
HERE = {"host": "localhost:8000"}


def post(client: TestClient, headers: dict[str, str]) -> int:
    return client.post("/v1/completions", json=BODY, headers=HERE | headers).status_code


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},  # another port of the same machine, say
        {"sec-fetch-site": "something new"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:9000"},
        {"origin": "null"},
        {"origin": "file://"},
        {"origin": ""},
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    client: TestClient, registry: FakeRegistry, headers: dict[str, str]
) -> None:
    files = {"config": b"{}", "weights": b"weights"}
    upload = client.post("/v1/adapters", data={"name": "shop"}, files=files, headers=HERE | headers)

    assert upload.status_code == 403
    assert upload.json()["error"]["code"] == "cross_site_request"
    assert not registry.list()
    assert post(client, headers) == 403
    assert client.delete("/v1/adapters/shop", headers=HERE | headers).status_code == 403
    assert client.get("/v1/models", headers=HERE | headers).status_code == 200  # which it can't read


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind-a-proxy.example"},
        {"sec-fetch-site": "none"},
        {"origin": "http://LOCALHOST:8000"},
    ],
)
def test_programs_and_the_servers_own_pages_are_answered(client: TestClient, headers: dict[str, str]) -> None:
    assert post(client, headers) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::2]:8000"]
)
def test_a_name_that_points_here_from_elsewhere_is_refused(tmp_path: Path, host: str) -> None:
    with TestClient(create_app(make_context(tmp_path))) as client:
        for path in ("/v1/models", "/health"):
            answer = client.get(path, headers={"host": host})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "host_not_allowed"
        assert "--allow-host" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "localhost.:80", "127.0.0.1:8000", "[::1]:8000"]
)
def test_the_servers_own_names_are_answered_on_any_port(tmp_path: Path, host: str) -> None:
    with TestClient(create_app(make_context(tmp_path))) as client:
        assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("bound", "allowed", "hosts"),
    [
        ("127.0.0.1", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.9", (), {"localhost", "127.0.0.1", "[::1]", "127.0.0.9"}),
        ("::1", ("Shop.example",), {"localhost", "127.0.0.1", "[::1]", "shop.example"}),
        ("localhost", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("0.0.0.0", (), None),
        ("shop.example", (), None),
        ("0.0.0.0", ("shop.example",), {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "shop.example"}),
    ],
)
def test_which_names_are_the_servers(bound: str, allowed: tuple[str, ...], hosts: set[str] | None) -> None:
    assert allowed_hosts(Settings(host=bound, allow_host=allowed)) == hosts


def test_any_name_will_do_where_others_may_reach_it(context: ServerContext, tmp_path: Path) -> None:
    with TestClient(create_app(make_context(tmp_path, host="0.0.0.0", allow_host=()))) as client:
        assert client.get("/health", headers={"host": "whatever.example"}).status_code == 200
