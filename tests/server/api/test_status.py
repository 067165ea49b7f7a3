"""What `ps` shows, and the sweep."""

from __future__ import annotations

from dataclasses import replace

from adapters.tier import LoadedAdapter
from tests.server.api.stand import Stand


def loaded(stand: Stand, **tiers: str) -> None:
    """Say which digests are in memory; the keyword is a name, its value `device` or `host`."""
    adapters = tuple(
        LoadedAdapter(stand.registry.resolve(name.replace("__", "/")).digest, tier, 2, False)  # type: ignore[arg-type]
        for name, tier in tiers.items()
    )
    stand.engine.current = replace(stand.engine.current, adapters_loaded=adapters)


def test_what_runs_and_what_is_in_memory(stand: Stand) -> None:
    shop, other = stand.publish("shop", 1)[0], stand.publish("other", 2)[0]
    stand.publish("idle", 3)
    stand.post("other/pin")
    loaded(stand, shop="device")
    stand.registry.hold(shop["digest"])
    status = stand.client.get("/v1/status").json()
    stand.registry.release(shop["digest"])

    assert (status["status"], status["ready"], status["model"]) == ("ok", True, "tiny")
    assert (status["running"], status["waiting"]) == (2, 1)
    assert status["memory"]["adapter_budget_bytes"] == 5000
    assert status["adapters"] == [
        {
            "id": "other@1",
            "digest": other["digest"],
            "state": "ready",
            "tier": "disk",
            "desired": "pinned",
            "requests": 0,
            "size": other["size"],
            "rank": 2,
        },
        {
            "id": "shop@1",
            "digest": shop["digest"],
            "state": "ready",
            "tier": "device",
            "desired": "",
            "requests": 1,
            "size": shop["size"],
            "rank": 2,
        },
    ]
    assert status["others"] == 0


def test_others_adapters_are_counted_and_not_named(stand: Stand) -> None:
    stand.publish("shop", 1)
    with stand.tenant("acme"):
        stand.publish("legal", 2)
        loaded(stand, shop="device", acme__legal="host")
        status = stand.client.get("/v1/status").json()

    assert [(each["id"], each["tier"]) for each in status["adapters"]] == [("acme/legal@1", "host")]
    assert status["others"] == 1
    assert "shop" not in str(status)


def test_what_the_default_tenant_shares_is_not_the_caller_s_own(stand: Stand) -> None:
    stand.publish("shop", 1)
    stand.client.put("/v1/adapters/shop/shares/*")
    with stand.tenant("acme"):
        loaded(stand, default__shop="device")
        status = stand.client.get("/v1/status").json()

    assert [each["id"] for each in status["adapters"]] == ["default/shop@1"]


def test_a_server_that_drains_is_not_ready(stand: Stand) -> None:
    stand.context.draining = True
    status = stand.client.get("/v1/status").json()

    assert (status["status"], status["ready"]) == ("draining", False)


def test_a_sweep_finds_what_was_damaged(stand: Stand) -> None:
    good, bad = (stand.publish(name, alpha)[0]["digest"] for name, alpha in (("good", 1), ("bad", 2)))
    path = stand.registry.folder(bad) / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    report = stand.client.post("/v1/registry/sweep").json()

    assert report["object"] == "registry.sweep"
    assert report["checked"] == 1
    assert report["quarantined"] == [bad]
    assert good not in str(report)
