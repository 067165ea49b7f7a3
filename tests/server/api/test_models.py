"""`/v1/models`: the base, and each adapter once under its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

from server.api.context import ServerContext
from tests.server.api.fakes import BASE, FakeRegistry


def test_the_list(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    for name in ("b", "a", "b"):
        registry.add(name, tmp_path)
    answer = client.get("/v1/models").json()

    assert answer["object"] == "list"
    assert [(card["id"], card["root"], card["parent"]) for card in answer["data"]] == [
        ("tiny", "tiny", None),
        ("a", "a@1", "tiny"),
        ("b", "b@2", "tiny"),
    ]
    assert answer["data"][0] == {
        "id": "tiny",
        "object": "model",
        "created": 1_600_000_000,
        "owned_by": "multilora",
        "root": "tiny",
        "parent": None,
        "max_model_len": 100,
        "quantization": None,
    }


def test_the_bases_card_tells_how_it_is_quantised(client: TestClient, context: ServerContext) -> None:
    context.base = replace(BASE, quantization="nf4")

    assert client.get("/v1/models/tiny").json()["quantization"] == "nf4"


def test_an_adapters_card_has_its_task_and_labels(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("mood", tmp_path, task="SEQ_CLS", labels=("good", "bad"))
    card = client.get("/v1/models/mood").json()

    assert (card["task"], card["labels"]) == ("SEQ_CLS", ["good", "bad"])
    assert "task" not in client.get("/v1/models/tiny").json()


def test_the_official_client_lists_and_retrieves(
    official: openai.OpenAI, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)

    assert [card.id for card in official.models.list()] == ["tiny", "shop"]
    assert official.models.retrieve("tiny").owned_by == "multilora"
    assert official.models.retrieve("shop").created == 1_700_000_000
    assert official.models.retrieve("shop@1").id == "shop@1"


@pytest.mark.parametrize("model", ["nobody", "shop@2", "a/b", "..%2Fx"])
def test_unknown_names(client: TestClient, registry: FakeRegistry, tmp_path: Path, model: str) -> None:
    registry.add("shop", tmp_path)
    answer = client.get(f"/v1/models/{model}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
