"""`/v1/tenants` over HTTP, and that quotas hold for requests that come after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.api.tenancy import Client, Server, serving

QUOTA = {
    "max_versions": 1,
    "max_bytes": 10**12,
    "max_rank": 64,
    "max_in_flight": 8,
    "tokens_per_minute": 1000,
    "max_jobs": 4,
    "max_file_bytes": 10**9,
    "weight": 2.5,
}
UNBOUND = {**dict.fromkeys(QUOTA), "weight": 1.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def operator(server: Server) -> Iterator[Client]:
    with server.client("default", "operator") as client:
        yield client


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_tenant_is_made_shown_changed_and_removed(operator: Client) -> None:
    made = operator.put("/v1/tenants/shop", json={"quota": QUOTA})
    assert made.status_code == 200
    assert (made.json()["id"], made.json()["object"], made.json()["quota"]) == ("shop", "tenant", QUOTA)
    assert operator.get("/v1/tenants/shop").json() == made.json()
    assert "default" in [tenant["id"] for tenant in operator.get("/v1/tenants").json()["data"]]
    changed = operator.put("/v1/tenants/shop", json={"quota": {"max_rank": 8}}).json()
    assert changed["quota"] == {**UNBOUND, "max_rank": 8}
    assert operator.put("/v1/tenants/shop", json={}).json()["quota"] == UNBOUND
    removed = operator.delete("/v1/tenants/shop")
    assert removed.json() == {"id": "shop", "object": "tenant.deleted", "deleted": True}
    for call in (operator.get, operator.delete):
        assert code(call("/v1/tenants/shop")) == (404, "tenant_not_found")


@pytest.mark.parametrize("name", ["Shop", "a.b", "latest", "x" * 64, "%2A", "%00", "a%20b"])
def test_bad_names_are_refused(name: str, operator: Client) -> None:
    assert code(operator.put(f"/v1/tenants/{name}", json={})) == (400, "invalid_name")
    assert code(operator.get(f"/v1/tenants/{name}")) == (404, "tenant_not_found")
    assert code(operator.delete(f"/v1/tenants/{name}")) == (404, "tenant_not_found")


@pytest.mark.parametrize(
    ("quota", "param"),
    [
        ({"max_versions": -1}, "quota.max_versions"),
        ({"max_rank": 0}, "quota.max_rank"),
        ({"max_in_flight": 0}, "quota.max_in_flight"),
        ({"tokens_per_minute": 0}, "quota.tokens_per_minute"),
        ({"tokens_per_minute": 1.5}, "quota.tokens_per_minute"),
        ({"max_bytes": 2**63}, "quota.max_bytes"),
        ({"weight": 0}, "quota.weight"),
        ({"weight": 101}, "quota.weight"),
        ({"weight": None}, "quota.weight"),
        ({"max_adapters": 5}, "quota.max_adapters"),
    ],
)
def test_bad_quotas_are_refused_by_name(quota: dict[str, Any], param: str, operator: Client) -> None:
    refused = operator.put("/v1/tenants/shop", json={"quota": quota})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_quota_holds_from_the_next_request_on(server: Server, operator: Client) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 5}
    with server.client("bounded") as bounded:
        assert bounded.post("/v1/completions", json=body).status_code == 200
        operator.put("/v1/tenants/bounded", json={"quota": {"tokens_per_minute": 1, "max_versions": 1}})
        answer = bounded.post("/v1/completions", json=body)
        assert (answer.status_code, answer.headers["x-ratelimit-limit-tokens"]) == (200, "1")
        refused = bounded.post("/v1/completions", json=body)
        assert code(refused) == (429, "tokens_per_minute")
        assert int(refused.headers["retry-after"]) in range(355, 362)
        assert operator.post("/v1/completions", json=body).status_code == 200
        assert bounded.publish("legal", 1).status_code == 201
        assert code(bounded.publish("legal", 2)) == (403, "quota_exceeded")


def test_with_its_tenant_a_key_ends(server: Server, operator: Client) -> None:
    with server.client("leaving") as leaving:
        assert leaving.publish("legal", 1).status_code == 201
        refused = operator.delete("/v1/tenants/leaving")
        assert code(refused) == (409, "adapter_conflict")
        assert "'legal'" in refused.json()["error"]["message"]
        assert leaving.delete("/v1/adapters/legal").status_code == 200
        assert operator.delete("/v1/tenants/leaving").status_code == 200
        assert leaving.get("/v1/models").status_code == 401
