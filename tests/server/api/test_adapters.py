"""`/v1/adapters`: publish, list, show, delete, on a real registry."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from adapters.errors import AdapterTooLarge, ProofUnavailable
from adapters.registry.proof import Proof
from server.api import publishing
from server.api.context import MAX_TENANT_UPLOADS, MAX_UPLOADS
from tests.server.api.stand import BASE, PATH, Stand, error, eventually, standing, weights


def test_an_upload_is_a_new_version(stand: Stand) -> None:
    answer = stand.upload("shop", lineage=b'{"job": "ft-17", "scores": {"accuracy": 0.5}}')

    assert answer.status_code == 201
    body = answer.json()
    assert body == {
        "id": "shop@1",
        "object": "adapter",
        "tenant": "default",
        "name": "shop",
        "version": 1,
        "state": "ready",
        "reason": "",
        "aliases": {"default": 100},
        "shadow_of": [],
        "desired": "",
        "tier": "disk",
        "digest": body["digest"],
        "base": "tiny",
        "base_digest": BASE.digest,
        "created": body["created"],
        "size": len(weights()),
        "rank": 2,
        "parameters": 32,
        "target_modules": ["q_proj"],
        "source": "upload",
        "lineage": {
            "parent": None,
            "parent_digest": None,
            "job": "ft-17",
            "data": [],
            "scores": {"accuracy": 0.5},
        },
        "variant": "lora",
        "task": None,
        "labels": [],
        "trained_on_quantization": None,
        "proof": {"status": "off", "reason": None, "max_logit_difference": None, "kl_from_base": None},
        "warnings": [],
    }
    assert abs(body["created"] - time.time()) < 60
    assert answer.headers["x-adapter"] == "shop@1"
    assert answer.headers["x-adapter-digest"] == body["digest"]


def test_the_same_files_again_are_no_new_version(stand: Stand) -> None:
    first, again, other = stand.upload("shop"), stand.upload("shop"), stand.upload("shop", 2)

    assert [answer.status_code for answer in (first, again, other)] == [201, 200, 201]
    assert again.json() == first.json()
    assert other.json()["id"] == "shop@2"
    assert b'uploads_total{outcome="unchanged"} 1.0' in stand.context.metrics.render()


def test_a_client_may_say_what_it_sends(stand: Stand) -> None:
    sent = hashlib.sha256(weights()).hexdigest()
    version = stand.upload("shop", sha256=sent)
    assert version.status_code == 201
    digest = version.json()["digest"]

    assert stand.upload("shop", digest=digest, sha256=sent).status_code == 200
    assert error(stand.upload("shop", sha256="0" * 64)) == (400, "checksum_mismatch")
    other = stand.upload("shop", 2, digest=digest)
    assert error(other) == (400, "invalid_adapter")
    assert digest[:12] in other.json()["error"]["message"]
    assert len(stand.get("").json()["data"]) == 1


def test_the_alias_default_follows_as_it_is_told(stand: Stand) -> None:
    first = stand.upload("shop", 1, promote="no")
    assert first.json()["aliases"] == {"default": 100}  # the first version of a name always gets it
    assert stand.upload("shop", 2, promote="no").json()["aliases"] == {}
    assert stand.upload("shop", 3).json()["aliases"] == {}  # it does not mean the newest any more
    assert stand.upload("shop", 4, promote="yes").json()["aliases"] == {"default": 100}
    assert stand.upload("shop", 5, promote="auto").json()["aliases"] == {"default": 100}
    assert stand.default("shop") == {5: 100}


def test_one_that_was_trained_on_another_form_of_the_base_is_taken_with_a_warning(stand: Stand) -> None:
    none, nf4 = (stand.upload("shop", quantization=form).json() for form in ("none", "nf4"))
    assert (none["trained_on_quantization"], none["warnings"]) == ("none", [])
    (warning,) = nf4["warnings"]
    assert warning.startswith(
        "it was trained on its base with quantization nf4, and is served on that base with quantization none"
    )

    stand.context.base = replace(BASE, quantization="nf4")
    assert stand.get("shop@2").json()["warnings"] == []
    assert len(stand.get("shop@1").json()["warnings"]) == 1


def test_what_was_published_begins_to_load_at_once(stand: Stand) -> None:
    digest = stand.upload("shop").json()["digest"]
    stand.upload("broken", weights=b"bad tensors")

    assert set(stand.engine.prefetched) == {digest}
    assert stand.registry.resolve("shop").digest == digest


REFUSED: list[tuple[str, bytes, Exception | None, int, str]] = [
    ("shop", b"bad tensors", None, 400, "invalid_adapter"),
    ("Shop", weights(), None, 400, "invalid_name"),
    ("../../etc", weights(), None, 400, "invalid_name"),
    ("shop@1", weights(), None, 400, "invalid_name"),
    ("tiny", weights(), None, 400, "invalid_name"),
    ("", weights(), None, 400, "invalid_name"),
    ("shop", weights(), AdapterTooLarge("rank"), 413, "adapter_too_large"),
    ("shop", weights(), ProofUnavailable("no PEFT"), 503, "proof_unavailable"),
]


def test_a_refused_upload_says_why_and_leaves_nothing(stand: Stand) -> None:
    for name, content, failure, status, code in REFUSED:

        def prove(folder: Path, adapter: Any, failure: Exception | None = failure) -> Proof:
            if failure is not None:
                raise failure
            return Proof("off")

        stand.registry.prove = prove
        assert error(stand.upload(name, weights=content)) == (status, code)

    assert not stand.registry.history()
    assert not list((stand.context.settings.data_dir / "uploads").iterdir())
    assert b'uploads_total{outcome="refused"} 8.0' in stand.context.metrics.render()


def test_uploads_at_once_are_bounded(stand: Stand) -> None:
    stand.context.uploads["others"] = MAX_UPLOADS
    refused = stand.upload("shop")
    stand.context.uploads["others"] -= 1

    assert error(refused) == (429, "too_many_uploads")
    assert "retry-after" in refused.headers
    assert stand.upload("shop").status_code == 201
    assert stand.context.uploads == {"others": MAX_UPLOADS - 1}


def test_one_tenants_uploads_leave_a_place_to_others(stand: Stand) -> None:
    stand.context.uploads["acme"] = MAX_TENANT_UPLOADS
    with stand.tenant("acme"):
        refused = stand.upload("shop")

    assert error(refused) == (429, "too_many_uploads")
    assert "of this tenant" in refused.json()["error"]["message"]
    assert stand.upload("shop").status_code == 201
    assert stand.context.uploads == {"acme": MAX_TENANT_UPLOADS}


def settled(stand: Stand, ref: str) -> Any:
    """The version, once it is checked."""
    eventually(lambda: stand.get(ref).json()["state"] not in ("uploaded", "checking"))
    return stand.get(ref).json()


def test_who_does_not_wait_asks_for_the_state(stand: Stand) -> None:
    begun, go_on = Event(), Event()

    def prove(folder: Path, adapter: Any) -> Proof:
        begun.set()
        assert go_on.wait(10)
        return Proof("off")

    stand.registry.prove = prove
    answer = stand.upload("shop", wait=False, lineage=b'{"job": "ft-1"}')
    assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (202, "shop@1", "uploaded")
    assert begun.wait(10)
    assert stand.get("shop@1").json()["state"] == "checking"
    assert stand.get("").json()["data"] == []
    assert [each["id"] for each in stand.get("", state="checking").json()["data"]] == ["shop@1"]
    assert stand.get("", all=True).json()["data"][0]["state"] == "checking"
    go_on.set()

    ready = settled(stand, "shop@1")
    assert (ready["state"], ready["aliases"]) == ("ready", {"default": 100})
    assert ready["lineage"]["job"] == "ft-1"
    eventually(lambda: ready["digest"] in stand.engine.prefetched)


def test_who_does_not_wait_and_knows_the_digest_makes_no_second_version(stand: Stand) -> None:
    digest = stand.publish("shop", 1)[0]["digest"]
    again = stand.upload("shop", wait=False, digest=digest)
    assert (again.status_code, again.json()["id"]) == (200, "shop@1")
    other = stand.upload("shop", 2, wait=False, digest=digest)  # what it says is not true
    assert (other.status_code, other.json()["id"]) == (200, "shop@1")
    assert error(stand.upload("no name", wait=False, digest=digest)) == (400, "invalid_name")
    assert [version.ref for version in stand.registry.history()] == ["shop@1"]


def test_what_is_refused_later_says_why(stand: Stand) -> None:
    assert stand.upload("shop", wait=False, weights=b"bad tensors").status_code == 202

    refused = settled(stand, "shop@1")
    assert refused["state"] == "refused"
    assert "safetensors" in refused["reason"] or "bytes" in refused["reason"]
    assert error(stand.post("shop@1/promote")) == (404, "adapter_not_found")
    assert stand.upload("shop").json()["id"] == "shop@2"  # a number never comes back


def test_a_check_that_could_not_be_made_is_made_later(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", 0.01)
    failures = [ProofUnavailable("no PEFT"), ProofUnavailable("no PEFT")]

    def prove(folder: Path, adapter: Any) -> Proof:
        if failures:
            raise failures.pop()
        return Proof("off")

    stand.registry.prove = prove
    stand.upload("shop", wait=False)

    assert settled(stand, "shop@1")["state"] == "ready"
    assert not failures


def test_checks_that_were_not_made_go_on_at_the_next_start(tmp_path: Path) -> None:
    def prove(folder: Path, adapter: Any) -> Proof:
        raise ProofUnavailable("no PEFT")

    with standing(tmp_path) as stand:
        stand.registry.prove = prove
        stand.upload("shop", wait=False)
    with standing(tmp_path) as stand:
        assert settled(stand, "shop@1")["state"] == "ready"


def test_the_list_has_every_version_that_answers(stand: Stand) -> None:
    stand.publish("a", 1)
    versions = stand.publish("b", 2, 3, 4)
    stand.engine.states[versions[1]["digest"]] = "device"
    stand.delete("b@1")
    stand.post("b@2/deprecate", {"reason": "old"})
    answer = stand.get("").json()

    assert [(item["id"], item["state"], item["tier"]) for item in answer["data"]] == [
        ("a@1", "ready", "disk"),
        ("b@2", "deprecated", "device"),
        ("b@3", "ready", "disk"),
    ]
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == ("a@1", "b@3", False)


def ids(answer: Any) -> list[str]:
    return [item["id"] for item in answer.json()["data"]]


def test_filters(stand: Stand) -> None:
    stand.publish("a", 1)
    first, _ = stand.publish("b", 1, 2)
    stand.delete("b@1")

    assert ids(stand.get("", name="b")) == ["b@2"]
    assert ids(stand.get("", name="b", all=True)) == ["b@1", "b@2"]
    assert ids(stand.get("", state="deleted")) == ["b@1"]
    assert ids(stand.get("", state="deprecated")) == []
    assert ids(stand.get("", digest=first["digest"])) == ["a@1"]
    assert ids(stand.get("", digest="0" * 64)) == []
    assert stand.get("", all=True).json()["data"][1]["aliases"] == {}


def test_pages(stand: Stand) -> None:
    for name, count in (("a", 1), ("b", 3), ("c", 1)):
        stand.publish(name, *range(1, count + 1))
    after: dict[str, str] = {}
    seen, pages = [], 0
    while True:
        page = stand.get("", limit=2, **after).json()
        seen += [item["id"] for item in page["data"]]
        pages += 1
        after = {"after": page["last_id"]}
        if not page["has_more"]:
            break
        if pages == 1:
            assert stand.delete(page["last_id"]).status_code == 200

    assert seen == ["a@1", "b@1", "b@2", "b@3", "c@1"]
    assert pages == 3


BOUNDS: list[dict[str, Any]] = [
    {"limit": 0},
    {"limit": 1001},
    {"limit": "x"},
    {"after": "/"},
    {"name": "a@1"},
    {"name": "/"},
    {"state": "lost"},
    {"digest": "0" * 65},
    {"all": "perhaps"},
]


def test_bounds_of_the_list(stand: Stand) -> None:
    for query in BOUNDS:
        answer = stand.get("", **query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


def test_one_adapter(stand: Stand) -> None:
    stand.publish("shop", 1, 2, 3)
    stand.delete("shop@2")

    assert stand.get("shop").json()["id"] == "shop@3"
    assert stand.get("shop").json()["versions"] == ["shop@1", "shop@3"]
    assert stand.get("shop@1").json()["id"] == "shop@1"
    gone = stand.get("shop@2").json()
    assert (gone["state"], gone["versions"]) == ("deleted", ["shop@1", "shop@3"])


def test_deleting_a_version_and_then_the_rest(stand: Stand) -> None:
    stand.publish("shop", 1, 2, 3)

    assert stand.delete("shop@2").json() == {
        "id": "shop@2",
        "object": "adapter.deleted",
        "deleted": True,
        "versions": ["shop@2"],
        "drained": True,
    }
    assert error(stand.delete("shop@3")) == (409, "adapter_conflict")
    assert "default" in stand.delete("shop@3").json()["error"]["message"]
    assert stand.delete("shop@3", force=True).json()["versions"] == ["shop@3"]
    assert stand.default("shop") == {1: 100}
    stand.put("shop/aliases/prod", {"targets": [{"version": 1}]})
    assert error(stand.delete("shop")) == (409, "adapter_conflict")
    assert stand.delete("shop", force=True).json()["versions"] == ["shop@1"]
    assert stand.delete("shop").status_code == 404


def test_draining_waits_for_the_last_request(stand: Stand) -> None:
    digest = stand.publish("shop", 1, 2)[0]["digest"]
    stand.registry.hold(digest)
    waited: list[Any] = []
    thread = Thread(target=lambda: waited.append(stand.delete("shop@1", drain_seconds=30)))
    thread.start()
    while stand.get("shop@1").json()["state"] != "deleted":
        time.sleep(0.01)
    assert not waited
    stand.registry.release(digest)
    thread.join()

    assert waited[0].json()["drained"] is True


def test_draining_is_bounded(stand: Stand) -> None:
    digest = stand.publish("shop", 1)[0]["digest"]
    stand.registry.hold(digest)
    started = time.monotonic()

    assert stand.delete("shop", drain_seconds=0.2).json()["drained"] is False
    assert 0.2 <= time.monotonic() - started < 5
    assert error(stand.delete("shop", drain_seconds=301))[0] == 400
    stand.registry.release(digest)


def test_unknown_adapters(stand: Stand) -> None:
    for method in ("GET", "DELETE"):
        for ref in ("nobody", "shop@7", "a/b", "..%2f..%2fetc", "x@@1"):
            answer = stand.client.request(method, f"{PATH}/{ref}")
            assert error(answer) == (404, "adapter_not_found"), (method, ref)


def test_tenants_do_not_see_one_another(stand: Stand) -> None:
    stand.publish("legal", 1)
    with stand.tenant("acme"):
        (own,) = stand.publish("legal", 2)
        assert own["id"] == "acme/legal@1"
        assert ids(stand.get("")) == ["acme/legal@1"]
        assert ids(stand.get("", name="legal")) == ["acme/legal@1"]
        assert stand.get("legal").json()["id"] == "acme/legal@1"
        assert error(stand.get("default/legal")) == (404, "adapter_not_found")
        assert error(stand.delete("default/legal")) == (404, "adapter_not_found")
        assert error(stand.upload("default/legal", 3))[0] == 403
    with stand.tenant("umbrella"):
        assert ids(stand.get("", all=True)) == []
        assert error(stand.get("legal")) == (404, "adapter_not_found")
        assert error(stand.get("acme/legal@1")) == (404, "adapter_not_found")
    with stand.tenant("ops", operator=True):
        assert ids(stand.get("")) == ["acme/legal@1", "default/legal@1"]
        assert stand.upload("acme/legal", 4).json()["id"] == "acme/legal@2"
        assert stand.delete("default/legal").json()["id"] == "default/legal"
    with stand.tenant("acme"):
        assert stand.delete("legal@1").json()["id"] == "acme/legal@1"
        assert stand.delete("legal").json()["id"] == "acme/legal"


def test_every_change_is_in_the_audit_log_with_its_caller(stand: Stand) -> None:
    with stand.tenant("acme"):
        stand.publish("legal", 1, 2)
        stand.post("legal@1/promote")
        stand.post("legal@1/pin")
        stand.put("legal/shares/umbrella")
        stand.delete("legal@2")
        entries = [
            entry for entry in stand.registry.audit(stand.caller) if not entry.action.startswith("tenant")
        ]

    assert {entry.actor for entry in entries} == {"key-acme"}
    assert {"publish", "promote", "want", "share", "delete"} <= {entry.action for entry in entries}


def test_while_the_server_drains_nothing_is_changed(stand: Stand) -> None:
    stand.publish("shop", 1)
    stand.context.draining = True

    for answer in (stand.upload("shop", 2), stand.delete("shop"), stand.post("shop/rollback")):
        assert error(answer) == (503, "draining")
    assert stand.get("shop").status_code == 200


def test_a_stopping_server_waits_for_the_check_that_runs(tmp_path: Path) -> None:
    done = Event()

    def prove(folder: Path, adapter: Any) -> Proof:
        time.sleep(0.3)
        done.set()
        return Proof("off")

    with standing(tmp_path) as stand:
        stand.registry.prove = prove
        stand.upload("shop", wait=False)
        stand.upload("next", 2, wait=False)
        while stand.get("shop@1").json()["state"] == "uploaded":
            time.sleep(0.01)
        stand.client.portal.call(publishing.stop_checks, stand.context)  # type: ignore[union-attr]
        assert done.is_set()
        assert stand.get("shop@1").json()["state"] == "ready"
        assert stand.get("next@1").json()["state"] == "uploaded"
        assert not stand.context.checks
