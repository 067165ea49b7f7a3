"""`/v1/adapters`: publish, list, show, delete."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapters.errors import AdapterConflict, AdapterTooLarge
from server.api.context import MAX_UPLOADS, ServerContext
from tests.server.api.fakes import BASE, FakeEngine, FakeRegistry

PATH = "/v1/adapters"


def upload(client: TestClient, name: str = "shop", weights: bytes = b"weights") -> Any:
    files = {"config": ("adapter_config.json", b"{}"), "weights": ("adapter_model.safetensors", weights)}
    return client.post(PATH, data={"name": name}, files=files)


def test_an_upload_is_a_new_version(client: TestClient, engine: FakeEngine) -> None:
    answer = upload(client)

    assert answer.status_code == 201
    body = answer.json()
    assert body == {
        "id": "shop@1",
        "object": "adapter",
        "name": "shop",
        "version": 1,
        "digest": body["digest"],
        "base": "tiny",
        "base_digest": BASE.digest,
        "created": 1_700_000_000,
        "size": 7,
        "rank": 8,
        "parameters": 1234,
        "target_modules": ["q_proj", "v_proj"],
        "source": "upload",
        "variant": "lora",
        "task": None,
        "labels": [],
        "trained_on_quantization": None,
        "proof": {"status": "off", "reason": None, "max_logit_difference": None, "kl_from_base": None},
        "warnings": [],
        "state": "disk",
    }
    assert answer.headers["x-adapter"] == "shop@1"
    assert answer.headers["x-adapter-digest"] == body["digest"]


def test_the_same_files_again_are_no_new_version(client: TestClient, context: ServerContext) -> None:
    first, again, other = upload(client), upload(client), upload(client, weights=b"other")

    assert [answer.status_code for answer in (first, again, other)] == [201, 200, 201]
    assert again.json() == first.json()
    assert other.json()["id"] == "shop@2"
    assert b'uploads_total{outcome="unchanged"} 1.0' in context.metrics.render()


def test_one_that_was_trained_on_another_form_of_the_base_is_taken_with_a_warning(
    client: TestClient, context: ServerContext
) -> None:
    def upload_of(trained_on: str) -> Any:
        files = {"config": ("c", b"{}"), "weights": ("w", trained_on.encode())}
        return client.post(PATH, data={"name": "shop", "quantization": trained_on}, files=files).json()

    assert (upload_of("none")["trained_on_quantization"], upload_of("none")["warnings"]) == ("none", [])
    (warning,) = upload_of("nf4")["warnings"]
    assert warning.startswith(
        "it was trained on its base with quantization nf4, and is served on that base with quantization none"
    )

    context.base = replace(BASE, quantization="nf4")
    assert client.get(f"{PATH}/shop@2").json()["warnings"] == []
    assert len(client.get(f"{PATH}/shop@1").json()["warnings"]) == 1


def test_what_was_published_begins_to_load_at_once(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry
) -> None:
    digest = upload(client).json()["digest"]
    upload(client, "broken", b"bad tensors")

    assert engine.prefetched == [digest]
    assert registry.resolve("shop").digest == digest


@pytest.mark.parametrize(
    ("name", "weights", "error", "status", "code"),
    [
        ("shop", b"bad tensors", None, 400, "invalid_adapter"),
        ("Shop", b"w", None, 400, "invalid_name"),
        ("../../etc", b"w", None, 400, "invalid_name"),
        ("shop@1", b"w", None, 400, "invalid_name"),
        ("tiny", b"w", None, 400, "invalid_name"),
        ("", b"w", None, 400, "invalid_name"),
        ("shop", b"w", AdapterTooLarge("rank"), 413, "adapter_too_large"),
        ("shop", b"w", AdapterConflict("full"), 409, "adapter_conflict"),
    ],
)
def test_a_refused_upload_says_why_and_leaves_nothing(
    client: TestClient,
    context: ServerContext,
    registry: FakeRegistry,
    name: str,
    weights: bytes,
    error: Exception | None,
    status: int,
    code: str,
) -> None:
    registry.fail = error
    answer = upload(client, name, weights)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not registry.live
    assert not list((context.settings.data_dir / "uploads").iterdir())
    assert b'uploads_total{outcome="refused"} 1.0' in context.metrics.render()


def test_uploads_at_once_are_bounded(client: TestClient, context: ServerContext) -> None:
    context.uploads = MAX_UPLOADS
    refused = upload(client)
    context.uploads -= 1

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
    assert "retry-after" in refused.headers
    assert upload(client).status_code == 201
    assert context.uploads == MAX_UPLOADS - 1


def test_the_list_has_every_version(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    versions = [registry.add(name, tmp_path) for name in ("a", "b", "b")]
    engine.states[versions[2].digest] = "device"
    answer = client.get(PATH).json()

    assert [(item["id"], item["state"]) for item in answer["data"]] == [
        ("a@1", "disk"),
        ("b@1", "disk"),
        ("b@2", "device"),
    ]
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == ("a@1", "b@2", False)


def test_pages(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    for name in ("a", "b", "b", "c"):
        registry.add(name, tmp_path)
    after: dict[str, str] = {}
    seen, pages = [], 0
    while True:
        page = client.get(PATH, params={"limit": 2, **after}).json()
        seen += [item["id"] for item in page["data"]]
        pages += 1
        after = {"after": page["last_id"]}
        if not page["has_more"]:
            break
        if pages == 1:
            registry.delete(page["last_id"])

    assert seen == ["a@1", "b@1", "b@2", "c@1"]
    assert pages == 2


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "/"}])
def test_page_bounds(client: TestClient, query: dict[str, Any]) -> None:
    answer = client.get(PATH, params=query)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(query))


def test_one_adapter(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    for _ in range(3):
        registry.add("shop", tmp_path)
    registry.delete("shop@2")

    assert client.get(f"{PATH}/shop").json()["id"] == "shop@3"
    assert client.get(f"{PATH}/shop").json()["versions"] == ["shop@1", "shop@3"]
    assert client.get(f"{PATH}/shop@1").json()["id"] == "shop@1"


def test_deleting_a_version_and_then_the_rest(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    for _ in range(3):
        registry.add("shop", tmp_path)

    assert client.delete(f"{PATH}/shop@2").json() == {
        "id": "shop@2",
        "object": "adapter.deleted",
        "deleted": True,
        "versions": ["shop@2"],
    }
    assert client.delete(f"{PATH}/shop").json()["versions"] == ["shop@1", "shop@3"]
    assert client.delete(f"{PATH}/shop").status_code == 404


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("ref", ["nobody", "shop@7", "a/b", "..%2f..%2fetc", "x@@1"])
def test_unknown_adapters(client: TestClient, registry: FakeRegistry, method: str, ref: str) -> None:
    answer = client.request(method, f"{PATH}/{ref}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")
