"""`/v1/keys` and `/v1/audit` over HTTP: who makes which keys, and what is shown of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.tenancy import Client, Server, serving

SECRET = re.compile(r"ml-[0-9a-f]{12}-[\w-]{43}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def operator(server: Server) -> Iterator[Client]:
    with server.client("default", "operator") as client:
        yield client


@pytest.fixture(scope="module")
def acme(server: Server) -> Iterator[Client]:
    with server.client("acme") as client:
        yield client


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def make(client: Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/keys", json={"name": "shop", "scopes": ["use"], **fields})


def test_the_first_key_is_an_operators_and_says_what_it_changes(tmp_path: Path) -> None:
    with serving(tmp_path) as server, Client(base_url=server.url) as anyone:
        assert code(make(anyone)) == (400, "first_key_not_operator")
        assert anyone.get("/v1/keys").json()["data"] == []
        made = make(anyone, scopes=["operator", "use"])
        assert made.status_code == 201
        assert "from now on every request needs one" in made.json()["notice"]
        assert made.headers["cache-control"] == "no-store"
        assert code(anyone.get("/v1/keys")) == (401, "invalid_api_key")
        headers = {"x-api-key": made.json()["secret"]}
        second = anyone.post("/v1/keys", json={"name": "second", "scopes": ["use"]}, headers=headers)
        assert (second.status_code, "notice" in second.json()) == (201, False)


def test_a_secret_is_shown_once(acme: Client) -> None:
    made = make(acme, expires_in=3600).json()
    assert SECRET.fullmatch(made.pop("secret"))
    assert (made["tenant"], made["scopes"], made["state"]) == ("acme", ["use"], "valid")
    assert made["expires"] - made["created"] in (3599, 3600, 3601)
    listed = acme.get("/v1/keys").json()["data"]
    assert made in listed
    assert acme.get(f"/v1/keys/{made['id']}").json() == made
    assert not [key for key in listed if "secret" in key or "hash" in key]
    assert not SECRET.search(acme.get("/v1/keys").text + acme.get("/v1/audit?limit=1000").text)


def test_a_revoked_key_ends_at_once_and_stays_in_the_list(server: Server, acme: Client) -> None:
    made = make(acme).json()
    headers = {"x-api-key": made["secret"]}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    revoked = acme.delete(f"/v1/keys/{made['id']}")
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401
    assert acme.get(f"/v1/keys/{made['id']}").json() == revoked.json()
    assert acme.delete(f"/v1/keys/{made['id']}").json() == revoked.json()


@pytest.mark.parametrize("scope", ["operator", "metrics"])
def test_an_admin_gives_no_more_than_its_tenant_has(scope: str, acme: Client, operator: Client) -> None:
    refused = make(acme, scopes=["use", scope])
    assert code(refused) == (403, "insufficient_scope")
    assert "`operator`" in refused.json()["error"]["message"]
    assert make(operator, scopes=[scope], tenant="acme").json()["tenant"] == "acme"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes[0]"),
        ({"scopes": "use"}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 10**12}, "expires_in"),
        ({"expires_in": "1d"}, "expires_in"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_bad_fields_are_refused_by_name(fields: dict[str, Any], param: str, acme: Client) -> None:
    refused = make(acme, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["key-000000000000", "key-", "%00", "x" * 300, "%F0%9F%94%91"])
def test_unknown_keys_are_a_404(path: str, operator: Client) -> None:
    for call in (operator.get, operator.delete):
        assert code(call(f"/v1/keys/{path}")) == (404, "key_not_found")


def test_an_operator_lists_all_or_one_tenants(server: Server, operator: Client, acme: Client) -> None:
    with server.client("listed") as listed:
        mine = [key["id"] for key in listed.get("/v1/keys").json()["data"]]
        assert len(mine) == 1
        assert mine == [key["id"] for key in operator.get("/v1/keys?tenant=listed").json()["data"]]
        assert set(mine) < {key["id"] for key in operator.get("/v1/keys").json()["data"]}
        assert code(operator.get("/v1/keys?tenant=nobody")) == (404, "tenant_not_found")
        assert code(listed.get("/v1/keys?tenant=acme")) == (404, "tenant_not_found")
        for _ in range(4):
            make(listed)
        everything = [key["id"] for key in listed.get("/v1/keys").json()["data"]]
        pages, after = [], ""
        while True:
            page = listed.get(f"/v1/keys?limit=2{after}").json()
            pages += [key["id"] for key in page["data"]]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert pages == everything


def test_the_audit_log_is_a_tenants_own_in_pages(server: Server, operator: Client) -> None:
    with server.client("audited") as audited:
        made = [make(audited).json()["id"] for _ in range(3)]
        audited.delete(f"/v1/keys/{made[0]}")
        entries = audited.get("/v1/audit").json()
        assert {entry["tenant"] for entry in entries["data"]} == {"audited"}
        assert [entry["action"] for entry in entries["data"]][-4:] == ["key.create"] * 3 + ["key.revoke"]
        own = entries["data"][-1]
        assert (own["object"], own["subject"], own["after"]) == ("audit.entry", made[0], None)
        assert own["actor"].startswith("key-")
        subject = audited.get("/v1/audit", params={"subject": made[0]}).json()
        assert [entry["action"] for entry in subject["data"]] == ["key.create", "key.revoke"]
        first = audited.get("/v1/audit?limit=2").json()
        assert (len(first["data"]), first["has_more"]) == (2, True)
        rest = audited.get(f"/v1/audit?after={first['last_id']}").json()
        assert first["data"] + rest["data"] == entries["data"]
        assert not rest["has_more"]
        assert len({entry["tenant"] for entry in operator.get("/v1/audit?limit=1000").json()["data"]}) > 1
        for query in ("after=-1", "limit=0", "limit=1001", "subject=", "subject=%00", f"after={2**63}"):
            assert audited.get(f"/v1/audit?{query}").status_code == 400
