"""Which version answers, and that it is held exactly as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from adapters.registry.records import LOCAL, AdapterVersion, Caller, Target
from server.api.app import create_app
from server.api.context import ServerContext
from server.api.errors import APIError
from server.api.lease import Lease, acquire, leased
from server.api.schemas import AdapterShare, ModelFields
from server.api.spellings import Asked
from server.engine.request import Request
from tests.server.api.fakes import BASE, ROUTES, FakeEngine, FakeRegistry, make_context

TEXT = "/v1/completions"
ACME = Caller("acme", "key-1")


def lease_of(context: ServerContext, model: str) -> AbstractContextManager[Lease]:
    request = HTTPConnection({"type": "http", "headers": []})
    return leased(request, context, LOCAL, ModelFields(model=model))


def test_the_answer_names_the_version_that_answered(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    first, second = registry.add("shop", tmp_path), registry.add("shop", tmp_path)
    for model, version in (("shop", second), ("shop@1", first), ("shop@2", second)):
        answer = client.post(TEXT, json={"model": model, "prompt": "hi"})

        assert answer.json()["model"] == version.ref
        assert answer.headers["x-adapter"] == version.ref
        assert answer.headers["x-adapter-digest"] == version.digest
        assert answer.headers["x-base-digest"] == BASE.digest
        assert engine.requests[-1].adapter == version.digest
    assert not +registry.held


def test_answers_of_the_base_have_no_adapter_headers(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post(TEXT, json={"model": "tiny", "prompt": "hi"})

    assert answer.json()["model"] == "tiny"
    assert answer.headers["x-base-digest"] == BASE.digest
    assert "x-adapter" not in answer.headers
    assert "x-adapter-digest" not in answer.headers
    assert engine.requests[0].adapter is None


@pytest.mark.parametrize("model", ["nobody", "shop@9", "tiny@1", "Tiny", "../shop", "shop@", "base", " tiny"])
def test_an_unknown_name_is_a_404_and_never_the_base(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path, model: str
) -> None:
    registry.add("shop", tmp_path)
    for path, fields in (
        (TEXT, {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        answer = client.post(path, json={"model": model, **fields})
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": f"The model `{model}` does not exist.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    assert not engine.requests


def test_a_deleted_version_is_gone_for_new_requests(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    registry.delete("shop")

    assert client.post(TEXT, json={"model": "shop", "prompt": "hi"}).status_code == 404


def test_a_lease_ends_with_a_block_that_fails(
    context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    digest = registry.add("shop", tmp_path).digest

    def fail() -> None:
        with lease_of(context, "shop"):
            assert registry.held[digest] == 1
            raise APIError(400, "no")

    with pytest.raises(APIError):
        fail()
    assert registry.held[digest] == 0
    assert b'outcome="rejected"} 1.0' in context.metrics.render()


def test_a_lease_outlives_a_block_that_succeeds_and_is_given_back_once(
    context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    digest = registry.add("shop", tmp_path).digest
    with lease_of(context, "shop") as lease:
        pass
    assert registry.held[digest] == 1

    lease.release()
    lease.release()
    assert registry.held[digest] == 0


def test_a_refused_request_holds_nothing(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add("shop", tmp_path)
    for fields in ({"n": 5}, {"prompt": "x" * 99}, {"min_tokens": 17}):
        assert client.post(TEXT, json={"model": "shop", "prompt": "hi", **fields}).status_code == 400

    assert not +registry.held


def test_an_adapter_deleted_between_resolve_and_hold_is_not_found(
    context: ServerContext, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("shop", tmp_path)
    monkeypatch.setattr(registry, "hold", lambda digest: registry.resolve("gone"))

    with pytest.raises(APIError, match="does not exist"):
        acquire(context, LOCAL, Asked("shop"))


def test_an_alias_is_told_and_a_version_needs_none(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    registry.add("shop", tmp_path)
    registry.set_alias("shop", "prod", [Target(1)])
    told = {
        model: client.post(TEXT, json={"model": model, "prompt": "hi"}).headers
        for model in ("shop", "shop@prod", "shop@2", "tiny")
    }
    assert {
        model: (headers.get("x-adapter"), headers.get("x-adapter-alias")) for model, headers in told.items()
    } == {
        "shop": ("shop@2", "default"),
        "shop@prod": ("shop@1", "prod"),
        "shop@2": ("shop@2", None),
        "tiny": (None, None),
    }
    assert client.post(TEXT, json={"model": "shop@dev", "prompt": "hi"}).status_code == 404


def test_a_routing_key_stays_with_its_version(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Of the fake registry: a key below 100 is its own place among the shares."""
    registry.add("shop", tmp_path)
    registry.add("shop", tmp_path)
    registry.set_alias("shop", "default", [Target(1, 90), Target(2, 10)])

    def version(headers: dict[str, str] | None = None, **fields: str) -> str:
        answer = client.post(TEXT, json={"model": "shop", "prompt": "hi", **fields}, headers=headers)
        return str(answer.headers["x-adapter"])

    assert [version({"x-routing-key": key}) for key in ("5", "89", "90", "99")] == [
        *("shop@1", "shop@1"),
        *("shop@2", "shop@2"),
    ]
    every: dict[str, Any] = {"user": "95", "safety_identifier": "5", "prompt_cache_key": "95"}
    assert version({"x-routing-key": "5"}, **every) == "shop@1"
    assert version(**every) == "shop@2"
    assert version(user="95", safety_identifier="5") == "shop@1"
    assert version(user="95", safety_identifier="", prompt_cache_key="") == "shop@2"
    vectors = client.post("/v1/embeddings", json={"model": "shop", "input": "hi", "user": "95"})
    assert vectors.headers["x-adapter"] == "shop@2"
    mixed = {"model": "tiny", "prompt": "hi", "adapters": [{"name": "shop", "scale": 2}], "user": "95"}
    assert client.post(TEXT, json=mixed).headers["x-adapter"] == "shop@2*2"


@pytest.mark.parametrize("field", ["user", "safety_identifier", "prompt_cache_key"])
def test_routing_keys_are_bounded_strings(client: TestClient, field: str) -> None:
    for value in (5, ["a"], "x" * 513):
        answer = client.post(TEXT, json={"model": "tiny", "prompt": "hi", field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    answer = client.post(TEXT, json={"model": "tiny", "prompt": "hi"}, headers={"x-routing-key": "x" * 513})
    assert answer.json()["error"]["message"] == "X-Routing-Key: at most 512 characters"


def test_a_tenant_sees_its_own_and_what_is_shared_with_it(
    context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    theirs = registry.add("shop", tmp_path)
    own = publish_for(registry, ACME, "shop", tmp_path, b"own")

    def asked(model: str) -> AdapterVersion | None:
        with acquired(context, ACME, model) as lease:
            assert lease.tenant == "acme"
            return lease.version

    assert own.ref == "acme/shop@1"
    assert asked("shop") == asked("acme/shop") == asked("acme/shop@1") == own
    with pytest.raises(APIError, match="`default/shop` does not exist") as caught:
        asked("default/shop")
    assert caught.value.status == 404
    registry.share("shop", "acme")
    assert asked("default/shop") == theirs
    assert asked("shop") == own
    assert asked("tiny") is None


def test_a_member_of_a_mixture_is_looked_up_as_its_caller_would(
    context: ServerContext, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("legal", tmp_path)
    publish_for(registry, ACME, "formal", tmp_path, b"formal")
    shares = [AdapterShare(name="default/legal", scale=0.5), AdapterShare(name="formal", scale=0.5)]
    with pytest.raises(APIError, match="`default/legal` does not exist"):
        acquire(context, ACME, Asked("tiny"), shares)

    registry.share("legal", "*")
    lease = acquire(context, ACME, Asked("tiny"), shares)
    assert lease.model == "default/legal@1*0.5+acme/formal@1*0.5"
    assert (lease.tenant, lease.scope) == ("acme", "acme")
    lease.release()


@pytest.mark.parametrize(("share_kv", "scope"), [(False, "default"), (True, "")])
def test_cached_kv_is_the_tenants_own_unless_the_operator_says_otherwise(
    tmp_path: Path, share_kv: bool, scope: str
) -> None:
    context = make_context(tmp_path, share_kv=share_kv)
    engine = cast(FakeEngine, context.engine)
    client = TestClient(create_app(context))
    for route, fields in ROUTES.items():
        assert client.post(route, json={"model": "tiny", **fields}).is_success
    requests: list[Request] = [*engine.requests, *engine.pooling]
    for request in requests:
        assert (request.tenant, request.scope) == ("default", scope)
    assert len(engine.requests) == 2
    assert len(engine.pooling) == 1


def publish_for(
    registry: FakeRegistry, caller: Caller, name: str, folder: Path, content: bytes
) -> AdapterVersion:
    weights = folder / "weights-of-another"
    weights.write_bytes(content)
    return registry.publish(name, b"{}", weights, caller=caller)[0]


@contextmanager
def acquired(context: ServerContext, caller: Caller, model: str) -> Iterator[Lease]:
    lease = acquire(context, caller, Asked(model))
    yield lease
    lease.release()
