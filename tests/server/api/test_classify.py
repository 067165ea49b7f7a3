"""`/v1/classify` and `/v1/token_classify`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from server.api.classify import probabilities
from server.api.context import ServerContext
from tests.server.api.fakes import FakeEngine, FakeRegistry

LABELS = ("good", "bad", "neither")


def test_a_class_for_each_input(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    version = registry.add("mood", tmp_path, task="SEQ_CLS", labels=LABELS)
    answer = client.post("/v1/classify", json={"model": "mood", "input": [[3], [4], [5, 3]]})

    body = answer.json()
    assert [(entry["index"], entry["label"]) for entry in body["data"]] == [
        (0, "good"),
        (1, "bad"),
        (2, "neither"),
    ]
    expected = torch.tensor([1.0, 0.0, 0.0]).softmax(0).tolist()
    first = body["data"][0]
    assert first["probs"] == pytest.approx(expected)
    assert first["num_classes"] == 3
    assert first["scores"] == pytest.approx(dict(zip(LABELS, expected, strict=True)))
    assert first["logits"] == {"good": 1.0, "bad": 0.0, "neither": 0.0}
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (body["object"], body["model"]) == ("list", "mood@1")
    assert answer.headers["x-adapter-digest"] == version.digest == engine.pooling[0].adapter
    assert {(request.task, request.pooling) for request in engine.pooling} == {("classify", "last")}
    assert not +registry.held


def test_labels_without_names_are_called_as_transformers_does(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("mood", tmp_path, task="SEQ_CLS", labels=("one", "two"))  # of three outputs
    body = client.post("/v1/classify", json={"model": "mood", "input": "a"}).json()

    assert list(body["data"][0]["scores"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_probabilities(activation: Any) -> None:
    logits = torch.tensor([[1.5, -2.0, 800.0], [-900.0, 0.0, 3.0]])
    expected = logits.double().sigmoid() if activation == "sigmoid" else logits.double().softmax(-1)
    np.testing.assert_allclose(probabilities(logits.tolist(), activation), expected, atol=1e-12)


def test_a_single_label_has_a_sigmoid() -> None:
    assert probabilities([[0.0]], None).tolist() == [[0.5]]
    assert probabilities([[0.0]], "softmax").tolist() == [[1.0]]


def test_activation_reaches_the_answer(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add("mood", tmp_path, task="SEQ_CLS", labels=LABELS)
    body = client.post("/v1/classify", json={"model": "mood", "input": [3], "activation": "sigmoid"}).json()

    assert body["data"][0]["probs"] == pytest.approx(torch.tensor([1.0, 0.0, 0.0]).sigmoid().tolist())


def test_a_label_for_each_token(client: TestClient, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add("names", tmp_path, task="TOKEN_CLS", labels=LABELS)
    text = "ab ü"
    body = client.post("/v1/token_classify", json={"model": "names", "input": text}).json()

    (entry,) = body["data"]
    raw = text.encode()
    assert [token["label"] for token in entry["tokens"]] == [LABELS[byte % 3] for byte in raw]
    assert [(token["start"], token["end"]) for token in entry["tokens"]] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (3, 4),  # one character of two bytes, a token each
    ]
    assert [token["token"] for token in entry["tokens"]] == ["a", "b", " ", "\\xc3", "\\xbc"]
    best = torch.tensor([1.0, 0.0, 0.0]).softmax(0)[0].item()
    assert [token["score"] for token in entry["tokens"]] == [pytest.approx(best)] * 5
    assert (entry["num_classes"], body["usage"]["prompt_tokens"]) == (3, 5)


def test_token_ids_have_no_place_in_a_text(
    client: TestClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add("names", tmp_path, task="TOKEN_CLS", labels=LABELS)
    body = client.post("/v1/token_classify", json={"model": "names", "input": [[97, 98], [99]]}).json()

    assert [
        [(token["token"], token["start"], token["end"]) for token in entry["tokens"]]
        for entry in body["data"]
    ] == [[("a", None, None), ("b", None, None)], [("c", None, None)]]


def test_a_base_with_a_head_of_its_own_needs_no_adapter(client: TestClient, context: ServerContext) -> None:
    context.base = replace(context.base, kind="encoder", task="SEQ_CLS", labels=LABELS)
    body = client.post("/v1/classify", json={"model": "tiny", "input": [4]}).json()

    assert body["data"][0]["label"] == "bad"
