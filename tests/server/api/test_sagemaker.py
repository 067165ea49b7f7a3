"""SageMaker's routes for adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapters.registry.records import Target
from server.api.context import ServerContext
from server.api.errors import INVALID
from tests.server.api.fakes import FakeRegistry
from tests.server.api.test_models import ACME, as_caller
from tests.server.api.test_vllm import make_folder

PATH = "/adapters"


@pytest.fixture
def allowed(context: ServerContext) -> Path:
    assert context.settings.adapter_dir is not None
    make_folder(context.settings.adapter_dir / "sql")
    return context.settings.adapter_dir


def register(client: TestClient, name: str = "sql", src: str = "sql", **fields: Any) -> Any:
    return client.post(PATH, json={"name": name, "src": src, **fields})


def test_register_and_delete_answer_as_vllm_does(
    client: TestClient, registry: FakeRegistry, allowed: Path
) -> None:
    answer = register(client)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert register(client).status_code == 400
    (allowed / "sql" / "adapter_model.safetensors").write_bytes(b"new weights")
    assert register(client, load_inplace=True).status_code == 200
    assert registry.resolve("sql").ref == "sql@2"
    registry.set_alias("sql", "prod", [Target(1)])

    answer = client.delete(f"{PATH}/sql")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert not registry.live
    answer = client.delete(f"{PATH}/sql")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")


@pytest.mark.parametrize(
    ("fields", "desired"),
    [
        ({}, ""),
        ({"preload": False, "pin": False}, ""),
        ({"preload": True}, "loaded"),
        ({"pin": True}, "pinned"),
        ({"preload": True, "pin": True}, "pinned"),
    ],
)
def test_what_is_kept_in_memory(
    client: TestClient, registry: FakeRegistry, allowed: Path, fields: dict[str, Any], desired: str
) -> None:
    register(client, **fields)
    assert registry.resolve("sql").desired == desired


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        ({"name": "", "src": "sql"}, 400, "InvalidUserInput", "Both 'name' and 'src' must be provided."),
        ({"name": "x", "src": "s3://bucket/x"}, 400, "InvalidUserInput", "'src' is a URL"),
        (
            {"name": "x", "src": "http://127.0.0.1/x"},
            400,
            "InvalidUserInput",
            "upload the files to POST /v1/",
        ),
        ({"name": "x", "src": "file:///etc"}, 400, "InvalidUserInput", "'src' is a URL"),
        ({"name": "x", "src": "../sql"}, 403, INVALID, "'src' lies outside"),
        ({"name": "x", "src": "/etc/passwd"}, 403, INVALID, "'src' lies outside"),
        ({"name": "x", "src": "\0"}, 400, "InvalidUserInput", "'src' is not a usable path."),
        ({"name": "x", "src": "none"}, 404, "NotFoundError", "No adapter found for none"),
        ({"name": "x", "src": "sql", "env": 1}, 400, INVALID, "env"),
        ({"name": "x"}, 400, INVALID, "Missing required parameter: 'src'."),
    ],
)
def test_errors(
    client: TestClient,
    registry: FakeRegistry,
    allowed: Path,
    body: object,
    status: int,
    kind: str,
    says: str,
) -> None:
    answer = client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), answer.text
    assert says in answer.json()["error"]["message"]
    assert not registry.live


def test_only_its_owner_deletes(
    client: TestClient, registry: FakeRegistry, allowed: Path, tmp_path: Path
) -> None:
    register(client)
    as_caller(client, ACME)
    assert client.delete(f"{PATH}/default/sql").status_code == 404
    registry.share("sql", "*")
    answer = client.delete(f"{PATH}/default/sql")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "adapter_forbidden")

    assert register(client).status_code == 200
    assert client.delete(f"{PATH}/acme/sql").status_code == 200
    assert list(registry.live) == ["sql"]
