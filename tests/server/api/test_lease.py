"""Which version answers, and that it is held exactly as long as it is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.api.context import ServerContext
from server.api.errors import APIError
from server.api.lease import acquire, leased
from tests.server.api.fakes import BASE, FakeEngine, FakeRegistry

TEXT = "/v1/completions"


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
        with leased(context, "shop"):
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
    with leased(context, "shop") as lease:
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
        acquire(context, "shop")
