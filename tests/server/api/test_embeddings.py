"""`/v1/embeddings`, read by the official client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from server.api.embeddings import EmbeddingRequest, encoded, entry
from server.engine.request import PoolingOutput
from tests.server.api.fakes import FakeEngine, FakeRegistry, tokens

PATH = "/v1/embeddings"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hi", [tokens("hi")]),
        (["hi", "you"], [tokens("hi"), tokens("you")]),
        ([104, 105], [(104, 105)]),
        ([[104], [105, 106]], [(104,), (105, 106)]),
    ],
)
def test_every_form_of_input(
    official: openai.OpenAI, engine: FakeEngine, given: Any, expected: list[tuple[int, ...]]
) -> None:
    answer = official.embeddings.create(model="tiny", input=given)

    assert [request.prompt for request in engine.pooling] == expected
    assert {(r.task, r.pooling, r.adapter) for r in engine.pooling} == {("embed", "last", None)}
    assert len({request.request_id for request in engine.pooling}) == len(expected)
    assert [entry.index for entry in answer.data] == list(range(len(expected)))
    assert [entry.embedding for entry in answer.data] == [pytest.approx([0.6, 0.8])] * len(expected)
    assert (answer.object, answer.model, answer.data[0].object) == ("list", "tiny", "embedding")
    count = sum(map(len, expected))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)


def test_numbers_and_base64_are_the_same(client: TestClient, official: openai.OpenAI) -> None:
    plain = client.post(PATH, json={"model": "tiny", "input": "hi"}).json()["data"][0]["embedding"]
    packed = client.post(PATH, json={"model": "tiny", "input": "hi", "encoding_format": "base64"}).json()
    asked = official.embeddings.create(model="tiny", input="hi", encoding_format="float")

    assert packed["data"][0]["embedding"] == "mpkZP83MTD8="  # 0.6 and 0.8 in float32, little-endian
    assert plain == pytest.approx([0.6, 0.8])
    assert asked.data[0].embedding == plain


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.6, 0.8]),
        ({"normalize": False}, [3.0, 4.0]),
        ({"dimensions": 1}, [1.0]),
        ({"dimensions": 1, "normalize": False}, [3.0]),
        ({"dimensions": 2}, [0.6, 0.8]),
    ],
)
def test_shortened_and_normalised(client: TestClient, fields: dict[str, Any], expected: list[float]) -> None:
    answer = client.post(PATH, json={"model": "tiny", "input": "hi", "user": "me", **fields}).json()

    assert answer["data"][0]["embedding"] == pytest.approx(expected)


def test_a_vector_of_zeros_stays_one() -> None:
    body = EmbeddingRequest(model="tiny", input="hi")
    assert entry(body, 0, PoolingOutput("x", ((0.0, 0.0),)))["embedding"] == [0.0, 0.0]
    assert encoded(np.zeros(0, np.float32), "base64") == ""


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_pooling_reaches_the_engine(client: TestClient, engine: FakeEngine, pooling: str) -> None:
    assert client.post(PATH, json={"model": "tiny", "input": "hi", "pooling": pooling}).status_code == 200
    assert engine.pooling[0].pooling == pooling


def test_an_adapter_embeds(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    version = registry.add("shop", tmp_path, task="FEATURE_EXTRACTION", invocation=(7, 8))
    answer = client.post(PATH, json={"model": "shop", "input": "hi"})

    assert answer.json()["model"] == "shop@1"
    assert answer.headers["x-adapter-digest"] == version.digest == engine.pooling[0].adapter
    assert answer.headers["x-request-id"] == answer.json()["id"]
    assert engine.pooling[0].invocation == (7, 8)
    assert not +registry.held


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 3}, "dimensions: at most 2, the width of this model's embeddings"),
        ({"dimensions": 0}, "dimensions: Input should be greater than or equal to 1"),
        ({"encoding_format": "int8"}, "encoding_format: Input should be 'float' or 'base64'"),
        ({"pooling": "max"}, "pooling: Input should be 'last', 'mean' or 'cls'"),
        ({"temperature": 1}, "Unrecognized request argument supplied: temperature"),
    ],
)
def test_refused(client: TestClient, engine: FakeEngine, fields: dict[str, Any], message: str) -> None:
    answer = client.post(PATH, json={"model": "tiny", "input": "hi", **fields})

    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
    assert not engine.running
