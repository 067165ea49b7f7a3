"""SGLang's routes: its bodies, and its JSON answers for what works and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapters.errors import ProofUnavailable
from adapters.registry.records import Target
from server.api.context import ServerContext
from tests.server.api.fakes import FakeRegistry
from tests.server.api.test_models import ACME, as_caller
from tests.server.api.test_vllm import make_folder

LOAD, UNLOAD, TENSORS = "/load_lora_adapter", "/unload_lora_adapter", "/load_lora_adapter_from_tensors"


@pytest.fixture
def allowed(context: ServerContext) -> Path:
    assert context.settings.adapter_dir is not None
    make_folder(context.settings.adapter_dir / "sql")
    return context.settings.adapter_dir


def load(client: TestClient, name: str = "sql", path: str = "sql", **fields: Any) -> Any:
    return client.post(LOAD, json={"lora_name": name, "lora_path": path, **fields})


def refusal(answer: Any) -> str:
    """The message of an answer that failed, in SGLang's shape."""
    body = answer.json()
    assert set(body) == {"success", "error_message", "loaded_adapters"}
    assert body["success"] is False
    return str(body["error_message"])


def test_load_and_unload_answer_as_sglang_does(
    client: TestClient, registry: FakeRegistry, allowed: Path
) -> None:
    loaded = load(client, lora_id="x")
    assert (loaded.status_code, loaded.json()) == (
        200,
        {"success": True, "error_message": None, "loaded_adapters": {"sql": "sql@1"}},
    )
    registry.set_alias("sql", "prod", [Target(1)])
    removed = client.post(UNLOAD, json={"lora_name": "sql", "lora_id": None})
    assert (removed.status_code, removed.json()) == (
        200,
        {"success": True, "error_message": None, "loaded_adapters": {}},
    )
    assert not registry.live


def test_pinned_is_wanted_for_ever(client: TestClient, registry: FakeRegistry, allowed: Path) -> None:
    make_folder(allowed / "law", b"law")
    load(client)
    load(client, "law", "law", pinned=True)
    assert {version.ref: version.desired for version in registry.list()} == {"sql@1": "", "law@1": "pinned"}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (
            LOAD,
            {"lora_name": "sql", "lora_path": "sql"},
            400,
            "The lora adapter 'sql' has already been loaded.",
        ),
        (LOAD, {"lora_name": "tiny", "lora_path": "sql"}, 400, "is the base model's name"),
        (LOAD, {"lora_name": "x", "lora_path": "none"}, 400, "No adapter found for none"),
        (LOAD, {"lora_name": "x", "lora_path": "broken"}, 400, "tensor x has the wrong shape"),
        (LOAD, {"lora_name": "x", "lora_path": "../sql"}, 403, "lies outside the folder"),
        (LOAD, {"lora_name": "x", "lora_path": "/etc"}, 403, "lies outside the folder"),
        (LOAD, {"lora_name": "x", "lora_path": "s3://b/x"}, 400, "'lora_path' is a URL"),
        (LOAD, {"lora_name": "x"}, 400, "Missing required parameter: 'lora_path'."),
        (LOAD, {"lora_name": "x", "lora_path": "sql", "other": 1}, 400, "other"),
        (UNLOAD, {"lora_name": "nobody"}, 400, "The lora adapter 'nobody' cannot be found."),
        (UNLOAD, {"lora_name": ""}, 400, "lora_name"),
        (UNLOAD, {}, 400, "Missing required parameter: 'lora_name'."),
        (
            TENSORS,
            {"lora_name": "x", "config_dict": {}, "serialized_named_tensors": ["gASV"]},
            400,
            "no pickle",
        ),
        (TENSORS, {}, 400, "upload adapter_config.json and adapter_model.safetensors to POST /v1/adapters"),
    ],
)
def test_refusals_have_the_same_shape(
    client: TestClient,
    registry: FakeRegistry,
    allowed: Path,
    path: str,
    body: dict[str, Any],
    status: int,
    says: str,
) -> None:
    make_folder(allowed / "broken", b"bad")
    load(client)
    answer = client.post(path, json=body)

    assert answer.status_code == status
    assert says in refusal(answer)
    assert answer.json()["loaded_adapters"] == {"sql": "sql@1"}
    assert list(registry.live) == ["sql"]


def test_a_body_that_is_no_json_and_a_proof_that_can_not_be_made(
    client: TestClient, registry: FakeRegistry, allowed: Path
) -> None:
    answer = client.post(LOAD, content=b"x", headers={"content-type": "application/json"})
    assert (answer.status_code, "not valid JSON" in refusal(answer)) == (400, True)
    registry.fail = ProofUnavailable("no proof just now")
    answer = load(client)
    assert (answer.status_code, refusal(answer)) == (503, "no proof just now")


def test_a_tenant_loads_and_lists_its_own(
    client: TestClient, registry: FakeRegistry, allowed: Path, tmp_path: Path
) -> None:
    load(client)
    as_caller(client, ACME)
    assert load(client).json()["loaded_adapters"] == {"sql": "acme/sql@1"}

    registry.add("shop", tmp_path)
    answer = client.post(UNLOAD, json={"lora_name": "default/shop"})
    assert "cannot be found" in refusal(answer)
    registry.share("shop", "acme")
    answer = client.post(UNLOAD, json={"lora_name": "default/shop"})
    assert (answer.status_code, "belongs to another tenant" in refusal(answer)) == (403, True)
    client.post(UNLOAD, json={"lora_name": "sql"})
    assert sorted(registry.live) == ["shop", "sql"]
