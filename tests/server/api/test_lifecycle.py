"""Promote, roll back, canary, deprecate, preload, pin and unpin over HTTP."""

from __future__ import annotations

from typing import Any

from tests.server.api.stand import Stand, error


def test_promote_and_roll_back(stand: Stand) -> None:
    stand.publish("shop", 1, 2, 3)

    promoted = stand.post("shop@1/promote")
    assert (promoted.status_code, promoted.json()["id"], promoted.headers["etag"]) == (
        200,
        "shop@default",
        '"4"',
    )
    assert stand.default("shop") == {1: 100}
    assert stand.post("shop@2/promote", {"alias": "prod"}).json()["targets"][0]["id"] == "shop@2"
    assert stand.post("shop@prod/promote").json()["targets"][0]["id"] == "shop@2"
    assert stand.default("shop") == {2: 100}
    for expected in ({1: 100}, {3: 100}, {2: 100}, {1: 100}):
        assert stand.post("shop/rollback").status_code == 200
        assert stand.default("shop") == expected
    assert error(stand.post("shop/rollback")) == (409, "adapter_conflict")
    assert error(stand.post("shop/rollback", {"alias": "nothing"})) == (404, "adapter_not_found")


def test_a_canary_grows_and_is_taken_back(stand: Stand) -> None:
    stand.publish("shop", 1)
    stand.upload("shop", 2, promote="no")

    assert stand.post("shop@2/canary", {"percent": 10}).json()["targets"] == [
        {"id": "shop@1", "version": 1, "percent": 90},
        {"id": "shop@2", "version": 2, "percent": 10},
    ] or stand.default("shop") == {1: 90, 2: 10}
    assert stand.post("shop@2/canary", {"percent": 50}).status_code == 200
    assert stand.default("shop") == {1: 50, 2: 50}
    assert stand.post("shop@2/canary", {"percent": 0}).status_code == 200
    assert stand.default("shop") == {1: 100}
    assert stand.post("shop/rollback").status_code == 200
    assert stand.default("shop") == {1: 50, 2: 50}
    assert stand.upload("shop", 3).json()["aliases"] == {}  # `default` is no longer the newest alone


def test_a_deprecated_version_answers_and_says_why(stand: Stand) -> None:
    stand.publish("shop", 1)
    old = stand.post("shop@1/deprecate", {"reason": "use shop@2"}).json()

    assert (old["id"], old["state"], old["reason"]) == ("shop@1", "deprecated", "use shop@2")
    assert stand.get("shop").json()["state"] == "deprecated"
    assert stand.registry.resolve("shop").ref == "shop@1"
    again = stand.post("shop@1/deprecate", {"reason": None}).json()
    assert (again["state"], again["reason"]) == ("ready", "")


def test_what_is_wanted_is_loaded_now_and_stays(stand: Stand) -> None:
    one, two = (version["digest"] for version in stand.publish("shop", 1, 2))
    stand.engine.prefetched.clear()

    assert stand.post("shop@1/pin").json()["desired"] == "pinned"
    assert stand.post("shop@2/preload").json()["desired"] == "loaded"
    assert stand.get("shop@1").json()["desired"] == "pinned"
    assert (stand.engine.pinned, set(stand.engine.prefetched)) == ({one}, {one, two})
    assert stand.post("shop@1/unpin").json()["desired"] == ""
    assert stand.get("shop@2").json()["desired"] == "loaded"
    assert stand.engine.pinned == set()


REFUSED: list[tuple[str, dict[str, Any] | None, str]] = [
    ("shop@1/promote", {"alias": ""}, "alias"),
    ("shop@1/promote", {"alias": "p" * 64}, "alias"),
    ("shop@1/promote", {"nonsense": 1}, "nonsense"),
    ("shop/rollback", {"to": 1}, "to"),
    ("shop@1/canary", {}, "percent"),
    ("shop@1/canary", {"percent": 101}, "percent"),
    ("shop@1/canary", {"percent": 10.5}, "percent"),
    ("shop@1/deprecate", {}, "reason"),
    ("shop@1/deprecate", {"reason": "x" * 501}, "reason"),
    ("shop@1/deprecate", {"reason": "x", "until": 1}, "until"),
]


def test_bodies_are_strict_and_bounded(stand: Stand) -> None:
    stand.publish("shop", 1)
    for path, body, param in REFUSED:
        answer = stand.post(path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (path, body)
    assert stand.client.post("/v1/adapters/shop@1/promote", content=b"x").status_code == 415
    assert stand.client.post("/v1/adapters/shop@1/canary").status_code == 415
    assert error(stand.post("shop@1/canary", {"percent": 10})) == (400, "invalid_alias")


CHANGES: list[tuple[str, dict[str, Any] | None]] = [
    ("promote", None),
    ("canary", {"percent": 10}),
    ("deprecate", {"reason": "x"}),
    ("preload", None),
    ("pin", None),
    ("unpin", None),
]


def test_only_the_owner_changes_what_others_may_use(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.publish("legal", 1, 2)
        stand.put("legal/shares/umbrella")
    with stand.tenant("umbrella"), stand.tenant("other"):
        before = stand.registry.audit()
    for tenant, refusal in (
        ("umbrella", (403, "adapter_forbidden")),
        ("other", (404, "adapter_not_found")),
    ):
        with stand.tenant(tenant):
            for verb, body in CHANGES:
                assert error(stand.post(f"acme/legal@1/{verb}", body)) == refusal, (tenant, verb)
                assert error(stand.post(f"legal@1/{verb}", body)) == (404, "adapter_not_found")
            assert error(stand.post("acme/legal/rollback")) == refusal
            assert error(stand.delete("acme/legal@1")) == refusal
    assert stand.registry.audit() == before
    with stand.tenant("ops", operator=True):
        for verb, body in reversed(CHANGES):  # after the promotion there is nothing for a canary to share
            assert stand.post(f"acme/legal@1/{verb}", body).status_code == 200
