"""Other ways to name an adapter than `model`: SGLang's, LoRAX's and SageMaker's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from adapters.registry.records import Target
from tests.server.api.fakes import FakeEngine, FakeRegistry

TEXT = "/v1/completions"
ROUTES: dict[str, dict[str, Any]] = {
    TEXT: {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"input": "hi"},
}
SAGEMAKER = "X-Amzn-SageMaker-Adapter-Identifier"
Spelling = tuple[dict[str, Any], dict[str, str]]
"""Fields of the body, and headers."""
SHOP: list[Spelling] = [
    ({"model": "shop"}, {}),
    ({"model": "tiny:shop"}, {}),
    ({"model": "tiny", "lora_path": "shop"}, {}),
    ({"model": "tiny", "adapter_id": "shop"}, {}),
    ({"model": "", "adapter_id": "shop"}, {}),
    ({"adapter_id": "shop"}, {}),
    ({"model": "tiny"}, {SAGEMAKER: "shop"}),
    ({}, {SAGEMAKER.lower(): "shop"}),
    ({"model": "tiny:shop", "lora_path": "shop", "adapter_id": "shop"}, {SAGEMAKER: "shop"}),
    ({"model": "shop", "lora_path": "", "adapter_id": None}, {SAGEMAKER: ""}),
    ({"model": "tiny", "adapter_id": "shop", "adapter_source": "", "api_token": None}, {}),
]


def ask(client: TestClient, spelling: Spelling, route: str = TEXT) -> Any:
    fields, headers = spelling
    return client.post(route, json={**ROUTES[route], **fields}, headers=headers)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("spelling", SHOP)
def test_every_spelling_asks_the_same_adapter(
    client: TestClient, registry: FakeRegistry, tmp_path: Path, spelling: Spelling, route: str
) -> None:
    registry.add("shop", tmp_path)
    answer = ask(client, spelling, route)

    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == answer.headers["x-adapter"] == "shop@1"


@pytest.mark.parametrize("ref", ["shop@1", "shop@prod", "default/shop", "default/shop@1"])
def test_a_spelling_takes_any_reference(
    client: TestClient, registry: FakeRegistry, tmp_path: Path, ref: str
) -> None:
    version = registry.add("shop", tmp_path)
    registry.set_alias("shop", "prod", [Target(1)])
    for fields in ({"model": f"tiny:{ref}"}, {"model": "tiny", "adapter_id": ref}):
        assert ask(client, (fields, {})).headers["x-adapter"] == version.ref


@pytest.mark.parametrize(
    ("spelling", "param", "says"),
    [
        (
            ({"model": "shop", "adapter_id": "law"}, {}),
            "adapter_id",
            "adapter_id: names `law`, but model names `shop`; send one of them",
        ),
        (
            ({"model": "tiny:shop", "lora_path": "law"}, {}),
            "lora_path",
            "lora_path: names `law`, but model names `shop`; send one of them",
        ),
        (
            ({"model": "tiny", "lora_path": "shop", "adapter_id": "law"}, {}),
            "adapter_id",
            "adapter_id: names `law`, but lora_path names `shop`; send one of them",
        ),
        (
            ({"model": "shop"}, {SAGEMAKER: "law"}),
            SAGEMAKER,
            f"{SAGEMAKER}: names `law`, but model names `shop`; send one of them",
        ),
        (
            ({"model": "shop", "lora_path": "tiny"}, {}),
            "lora_path",
            "lora_path: names `tiny`, but model names `shop`; send one of them",
        ),
        (({}, {SAGEMAKER: "x" * 257}), SAGEMAKER, f"{SAGEMAKER}: at most 256 characters"),
        (({}, {}), "model", "Missing required parameter: 'model'."),
        (({"model": ""}, {SAGEMAKER: ""}), "model", "Missing required parameter: 'model'."),
        (
            ({"model": "tiny", "lora_path": ["shop", "law"]}, {}),
            "lora_path",
            "lora_path: takes one adapter's name; send one request for each adapter",
        ),
        (
            ({"model": "tiny", "adapter_id": 5}, {}),
            "adapter_id",
            "adapter_id: Input should be a valid string",
        ),
        (
            ({"model": "tiny", "adapter_id": "shop", "adapter_source": "hub"}, {}),
            "adapter_source",
            "adapter_source: this server does not support this parameter",
        ),
        (
            ({"model": "tiny", "adapter_id": "shop", "api_token": "secret"}, {}),
            "api_token",
            "api_token: this server does not support this parameter",
        ),
        (
            ({"model": "tiny", "lora_path": "shop", "adapters": [{"name": "law"}]}, {}),
            "lora_path",
            "lora_path: must be `tiny`, the base's name, when adapters is given",
        ),
    ],
)
def test_spellings_that_are_refused(
    client: TestClient,
    engine: FakeEngine,
    registry: FakeRegistry,
    tmp_path: Path,
    spelling: Spelling,
    param: str,
    says: str,
) -> None:
    for name in ("shop", "law"):
        registry.add(name, tmp_path)
    for route in ROUTES:
        answer = ask(client, spelling, route)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["message"]) == (400, param, says)
    assert not engine.requests
    assert not +registry.held


def test_two_headers_that_disagree(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add("shop", tmp_path)
    headers = [(SAGEMAKER, "shop"), (SAGEMAKER, "law")]
    answer = client.post(TEXT, json={"prompt": "hi"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, SAGEMAKER)


@pytest.mark.parametrize(
    ("spelling", "param", "name"),
    [
        (({"model": "tiny:nobody"}, {}), "model", "nobody"),
        (({"model": "tiny:"}, {}), "model", "tiny:"),
        (({"model": "other:shop"}, {}), "model", "other:shop"),
        (({"model": "shop:tiny"}, {}), "model", "shop:tiny"),
        (({"model": "tiny:tiny:shop"}, {}), "model", "tiny:shop"),
        (({"model": "tiny", "lora_path": "nobody"}, {}), "lora_path", "nobody"),
        (({"model": "tiny", "lora_path": "/etc/passwd"}, {}), "lora_path", "/etc/passwd"),
        (({"model": "tiny", "adapter_id": "org/nobody"}, {}), "adapter_id", "org/nobody"),
        (({"model": "tiny", "adapter_id": "s3://bucket/shop"}, {}), "adapter_id", "s3://bucket/shop"),
        (({"model": "tiny", "adapter_id": "../shop"}, {}), "adapter_id", "../shop"),
        (({"model": "tiny"}, {SAGEMAKER: "nobody"}), SAGEMAKER, "nobody"),
    ],
)
def test_an_unknown_name_is_a_404_and_never_the_base(
    client: TestClient,
    engine: FakeEngine,
    registry: FakeRegistry,
    tmp_path: Path,
    spelling: Spelling,
    param: str,
    name: str,
) -> None:
    registry.add("shop", tmp_path)
    for route in ROUTES:
        answer = ask(client, spelling, route)
        assert (answer.status_code, answer.json()["error"]) == (
            404,
            {
                "message": f"The model `{name}` does not exist.",
                "type": "invalid_request_error",
                "param": param,
                "code": "model_not_found",
            },
        )
    assert not engine.requests
    assert not engine.pooling


def test_the_official_client_sends_them(
    official: openai.OpenAI, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("shop", tmp_path)
    body = {"prompt": "hi", "max_tokens": 2}
    answers = [
        official.completions.create(model="tiny:shop", **body),  # type: ignore[call-overload]
        official.completions.create(model="tiny", extra_body={"lora_path": "shop"}, **body),  # type: ignore[call-overload]
        official.completions.create(model="tiny", extra_headers={SAGEMAKER: "shop"}, **body),  # type: ignore[call-overload]
    ]
    assert [answer.model for answer in answers] == ["shop@1"] * 3
