"""`/v1/models`: the base, and each adapter that the caller may see, under its name and its aliases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from adapters.registry.records import Caller, Lineage, Target
from server.api.auth import get_caller
from server.api.context import ServerContext
from tests.server.api.fakes import BASE, FakeRegistry

ACME = Caller("acme", "key-1")


def as_caller(client: TestClient, caller: Caller) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    app.dependency_overrides[get_caller] = lambda: caller


def ids(client: TestClient) -> list[str]:
    return [card["id"] for card in client.get("/v1/models").json()["data"]]


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


def test_aliases_have_cards_of_their_own(
    client: TestClient, official: openai.OpenAI, registry: FakeRegistry, tmp_path: Path
) -> None:
    for name in ("law", "law", "shop"):
        registry.add(name, tmp_path)
    registry.set_alias("law", "prod", [Target(1)])
    registry.set_alias("law", "beta", [Target(1, 20), Target(2, 80)])

    cards = {card.id: card.model_dump() for card in official.models.list()}
    assert list(cards) == ["tiny", "law", "law@beta", "law@prod", "shop"]
    roots = {"law": "law@2", "law@beta": "law@2", "law@prod": "law@1", "shop": "shop@1"}
    assert {name: card["root"] for name, card in cards.items() if name != "tiny"} == roots
    assert {card["parent"] for name, card in cards.items() if name != "tiny"} == {"tiny"}
    for name, root in roots.items():
        assert official.models.retrieve(name).model_dump()["root"] == root
    assert client.get("/v1/models/law@dev").status_code == 404


def test_a_canarys_card_names_what_most_requests_get(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    for _ in range(2):
        registry.add("law", tmp_path)
    for share, root in ((10, "law@1"), (50, "law@2"), (90, "law@2")):
        registry.set_alias("law", "default", [Target(1, 100 - share), Target(2, share)])
        listed = {card["id"]: card["root"] for card in client.get("/v1/models").json()["data"]}
        assert listed["law"] == client.get("/v1/models/law").json()["root"] == root


def test_a_caller_sees_its_own_adapters_and_those_shared_with_it(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("law", tmp_path)
    registry.add("shop", tmp_path)
    registry.add("law", tmp_path, tenant="acme")
    registry.add("secret", tmp_path, tenant="other")
    registry.share("shop", "acme")
    assert ids(client) == ["tiny", "acme/law", "law", "shop", "other/secret"]

    as_caller(client, ACME)
    assert ids(client) == ["tiny", "law", "default/shop"]
    roots = {name: client.get(f"/v1/models/{name}").json()["root"] for name in ids(client)}
    assert roots == {"tiny": "tiny", "law": "acme/law@1", "default/shop": "default/shop@1"}
    for hidden in ("shop", "default/law", "other/secret", "default/law@1", "other/nobody"):
        answer = client.get(f"/v1/models/{hidden}")
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            404,
            f"The model `{hidden}` does not exist.",
        )


def test_what_an_adapter_was_trained_from_is_told_to_its_owner(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("law", tmp_path)
    registry.add("law", tmp_path, lineage=Lineage(parent="law@1"))
    registry.share("law", "*")
    assert client.get("/v1/models/law").json()["parent_adapter"] == "law@1"
    assert client.get("/v1/models/law@1").json()["parent_adapter"] is None

    as_caller(client, ACME)
    assert client.get("/v1/models/default/law").json()["parent_adapter"] is None


def test_a_base_and_adapter_in_one_name_has_a_card(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("law", tmp_path)
    card = client.get("/v1/models/tiny:law").json()
    assert (card["id"], card["root"]) == ("tiny:law", "law@1")
    assert client.get("/v1/models/tiny:").status_code == 404
