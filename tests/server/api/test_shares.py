"""Sharing an adapter with other tenants over HTTP."""

from __future__ import annotations

from tests.server.api.stand import Stand, error


def test_a_share_is_given_and_taken_back(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.publish("legal", 1)
        assert stand.get("legal/shares").json() == {
            "object": "adapter.shares",
            "name": "acme/legal",
            "tenants": [],
        }
        assert stand.put("legal/shares/umbrella").json()["tenants"] == ["umbrella"]
        assert stand.put("legal/shares/*").json()["tenants"] == ["*", "umbrella"]
        assert stand.delete("legal/shares/*").json()["tenants"] == ["umbrella"]
    with stand.tenant("umbrella"):
        assert stand.get("acme/legal").json()["id"] == "acme/legal@1"
        assert error(stand.get("legal")) == (404, "adapter_not_found")
        assert [each["id"] for each in stand.get("").json()["data"]] == ["acme/legal@1"]
    with stand.tenant("acme"):
        assert stand.delete("legal/shares/umbrella").json()["tenants"] == []
    with stand.tenant("umbrella"):
        assert error(stand.get("acme/legal")) == (404, "adapter_not_found")


def test_only_the_owner_shares(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.publish("legal", 1)
        stand.put("legal/shares/umbrella")
        assert error(stand.put("legal/shares/No Body")) == (400, "invalid_name")
    with stand.tenant("umbrella"):
        assert error(stand.put("acme/legal/shares/other")) == (403, "adapter_forbidden")
        assert error(stand.delete("acme/legal/shares/umbrella")) == (403, "adapter_forbidden")
    with stand.tenant("other"):
        assert error(stand.get("acme/legal/shares")) == (404, "adapter_not_found")
        assert error(stand.put("acme/legal/shares/other")) == (404, "adapter_not_found")
