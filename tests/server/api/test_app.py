"""The application as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.api.app import create_app
from server.api.chat_schema import ChatRequest
from server.api.completion_schema import CompletionRequest
from server.api.context import ServerContext

DOCS = Path(__file__).parents[3] / "docs" / "api.md"


def test_every_field_is_in_the_docs() -> None:
    text = DOCS.read_text()
    for field in {*ChatRequest.model_fields, *CompletionRequest.model_fields}:
        assert f"`{field}" in text, field


@pytest.mark.parametrize(
    "route",
    [
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "GET /v1/models",
        "GET /v1/models/{id}",
        "POST /v1/adapters",
        "GET /v1/adapters",
        "GET /v1/adapters/{ref}",
        "DELETE /v1/adapters/{ref}",
        "POST /v1/load_lora_adapter",
        "POST /v1/unload_lora_adapter",
        "POST /load_lora_adapter",
        "POST /unload_lora_adapter",
        "POST /load_lora_adapter_from_tensors",
        "POST /adapters",
        "DELETE /adapters/{name}",
        "GET /health",
        "GET /metrics",
    ],
)
def test_every_route_is_there_and_in_the_docs(client: TestClient, route: str) -> None:
    method, path = route.split()
    answer = client.request(method, path.format(id="x", name="x", ref="x"))

    assert answer.status_code not in (405, 500)
    assert answer.status_code != 404 or answer.json()["error"]["code"] != "unknown_url"
    assert f"`{route}`" in DOCS.read_text()


def test_start_removes_what_an_earlier_server_left(context: ServerContext) -> None:
    folder = context.settings.data_dir / "uploads" / "upload-x"
    folder.mkdir(parents=True)
    with TestClient(create_app(context)):
        assert not folder.exists()
