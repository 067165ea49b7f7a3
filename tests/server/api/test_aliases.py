"""Aliases over HTTP: set, moved by compare-and-set, removed, and what they meant before."""

from __future__ import annotations

from typing import Any

from tests.server.api.stand import Stand, error


def targets(**percents: int) -> dict[str, Any]:
    """`v1=90, v2=10` as the body of a PUT."""
    return {"targets": [{"version": int(name[1:]), "percent": percent} for name, percent in percents.items()]}


def test_an_alias_is_made_moved_and_removed(stand: Stand) -> None:
    stand.publish("shop", 1, 2, 3)
    made = stand.put("shop/aliases/prod", {**targets(v1=90, v2=10), "shadow": 3})

    assert made.status_code == 200
    body = made.json()
    assert body == {
        "id": "shop@prod",
        "object": "adapter.alias",
        "name": "shop",
        "alias": "prod",
        "targets": [
            {"id": "shop@1", "version": 1, "percent": 90},
            {"id": "shop@2", "version": 2, "percent": 10},
        ],
        "shadow": 3,
        "revision": 1,
        "updated": body["updated"],
        "actor": "local",
    }
    assert made.headers["etag"] == '"1"'
    shown = stand.get("shop@2").json()
    assert (shown["aliases"], stand.get("shop@3").json()["shadow_of"]) == ({"prod": 10}, ["prod"])
    assert [alias["alias"] for alias in stand.get("shop/aliases").json()["data"]] == ["default", "prod"]

    assert stand.put("shop/aliases/prod", {"targets": [{"version": 2}]}).json()["revision"] == 2
    assert stand.delete("shop/aliases/prod").json() == {
        "id": "shop@prod",
        "object": "adapter.alias.deleted",
        "deleted": True,
    }
    assert error(stand.get("shop@prod")) == (404, "adapter_not_found")
    assert stand.put("shop/aliases/prod", targets(v1=100)).json()["revision"] == 4
    history = stand.get("shop/aliases/prod/history").json()["data"]
    assert [[target["version"] for target in each["targets"]] for each in history] == [[1], [], [2], [1, 2]]
    assert [each["revision"] for each in history] == [4, 3, 2, 1]


def test_what_an_alias_means_begins_to_load(stand: Stand) -> None:
    one, two, three = (version["digest"] for version in stand.publish("shop", 1, 2, 3))
    stand.engine.prefetched.clear()
    stand.put("shop/aliases/prod", {**targets(v1=100), "shadow": 3})

    assert set(stand.engine.prefetched) == {one, three}
    assert two not in stand.engine.prefetched


def test_a_change_may_name_the_revision_that_it_expects(stand: Stand) -> None:
    stand.publish("shop", 1, 2)
    path, body = "shop/aliases/prod", targets(v1=100)

    assert stand.put(path, {**body, "expected_revision": 0}).json()["revision"] == 1
    assert error(stand.put(path, {**body, "expected_revision": 0})) == (409, "adapter_conflict")
    moved = stand.put(path, targets(v2=100), **{"if-match": '"1"'})
    assert (moved.status_code, moved.headers["etag"]) == (200, '"2"')
    stale = stand.put(path, body, **{"if-match": '"1"'})
    assert error(stale) == (409, "adapter_conflict")
    assert "2" in stale.json()["error"]["message"]
    assert error(stand.delete(path, expected_revision=1)) == (409, "adapter_conflict")
    assert stand.get("shop@prod").json()["id"] == "shop@2"
    assert stand.delete(path, expected_revision=2).status_code == 200
    default = {"expected_revision": 2}
    assert stand.post("shop@1/promote", default).status_code == 200
    assert stand.post("shop/rollback", default).status_code == 409
    assert stand.post("shop/rollback", None, **{"if-match": '"3"'}).status_code == 200


REFUSED: list[tuple[dict[str, Any] | None, dict[str, str], str]] = [
    ({}, {}, "targets"),
    ({"targets": []}, {}, "targets"),
    ({"targets": [{"version": 1}] * 17}, {}, "targets"),
    ({"targets": [{"version": 1, "percent": 0}]}, {}, "targets[0].percent"),
    ({"targets": [{"version": 1, "percent": 101}]}, {}, "targets[0].percent"),
    ({"targets": [{"version": "1"}]}, {}, "targets[0].version"),
    ({"targets": [{"version": True}]}, {}, "targets[0].version"),
    ({"targets": [{"version": 1, "weight": 1}]}, {}, "targets[0].weight"),
    ({"targets": [{"version": 1}], "shadow": 0}, {}, "shadow"),
    ({"targets": [{"version": 1}], "note": "x"}, {}, "note"),
    ({"targets": [{"version": 1}], "expected_revision": -1}, {}, "expected_revision"),
    ({"targets": [{"version": 1}], "expected_revision": 1}, {"if-match": '"1"'}, "expected_revision"),
    ({"targets": [{"version": 1}]}, {"if-match": "*"}, "If-Match"),
    ({"targets": [{"version": 1}]}, {"if-match": "1"}, "If-Match"),
]


def test_bodies_are_strict_and_bounded(stand: Stand) -> None:
    stand.publish("shop", 1)
    for body, headers, param in REFUSED:
        answer = stand.put("shop/aliases/prod", body, **headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), body
    for wrong in (targets(v1=60), {"targets": [{"version": 1}, {"version": 1}]}):
        assert error(stand.put("shop/aliases/prod", wrong)) == (400, "invalid_alias")
    for name in ("3", "latest", "Prod", "p" * 64):
        assert error(stand.put(f"shop/aliases/{name}", targets(v1=100))) == (400, "invalid_name")
    assert [alias["alias"] for alias in stand.get("shop/aliases").json()["data"]] == ["default"]


def test_what_is_not_there(stand: Stand) -> None:
    stand.publish("shop", 1)
    missing = (404, "adapter_not_found")

    assert error(stand.get("nobody/aliases")) == missing
    assert error(stand.get("shop/aliases/prod/history")) == missing
    assert error(stand.put("nobody/aliases/prod", targets(v1=100))) == missing
    assert error(stand.put("shop/aliases/prod", targets(v2=100))) == missing
    assert error(stand.delete("shop/aliases/prod")) == missing
    assert error(stand.delete("shop/aliases/default")) == (409, "adapter_conflict")


def test_another_tenants_alias_can_be_seen_if_it_is_shared_and_never_moved(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.publish("legal", 1, 2)
        stand.put("legal/aliases/prod", targets(v1=100))
        stand.put("legal/shares/umbrella")
    with stand.tenant("umbrella"):
        assert stand.get("acme/legal@prod").json()["aliases"] == {"prod": 100}
        (seen,) = stand.get("acme/legal/aliases/prod/history").json()["data"]
        assert seen["actor"] is None
        assert error(stand.put("acme/legal/aliases/prod", targets(v2=100))) == (403, "adapter_forbidden")
        assert error(stand.delete("acme/legal/aliases/prod")) == (403, "adapter_forbidden")
    with stand.tenant("other"):
        for answer in (
            stand.get("acme/legal/aliases"),
            stand.get("acme/legal/aliases/prod/history"),
            stand.put("acme/legal/aliases/prod", targets(v2=100)),
            stand.delete("acme/legal/aliases/prod"),
        ):
            assert error(answer) == (404, "adapter_not_found")
