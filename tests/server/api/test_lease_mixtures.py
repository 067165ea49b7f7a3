"""Mixtures: every member is resolved, held and named; what can't be mixed is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapters.errors import AdapterNotFound, AdapterTooLarge
from adapters.mixture import Mixture
from adapters.registry.records import LOCAL, AdapterVersion
from server.api.context import ServerContext
from server.api.errors import APIError
from server.api.lease import acquire
from server.api.schemas import AdapterShare
from server.api.spellings import Asked
from tests.server.api.fakes import ROUTES, FakeEngine, FakeRegistry

TEXT = "/v1/completions"
MIXED = [{"name": "legal", "scale": 0.7}, {"name": "formal@1", "scale": 0.5}]


@pytest.fixture
def pair(registry: FakeRegistry, tmp_path: Path) -> tuple[AdapterVersion, AdapterVersion]:
    """`legal@2` and `formal@1`, of rank 8 each."""
    registry.add("legal", tmp_path)
    return registry.add("legal", tmp_path), registry.add("formal", tmp_path)


@pytest.mark.parametrize("route", ROUTES)
def test_a_mixture_names_its_members_and_has_a_digest(
    route: str,
    client: TestClient,
    engine: FakeEngine,
    registry: FakeRegistry,
    pair: tuple[AdapterVersion, AdapterVersion],
) -> None:
    answer = client.post(route, json={"model": "tiny", "adapters": MIXED, **ROUTES[route]})

    assert answer.status_code == 200
    digest = Mixture.of([(pair[0].digest, 0.7), (pair[1].digest, 0.5)]).digest
    assert answer.json()["model"] == "legal@2*0.7+formal@1*0.5"
    assert answer.headers["x-adapter"] == "legal@2*0.7+formal@1*0.5"
    assert answer.headers["x-adapter-digest"] == digest
    seen = [request.adapter for request in engine.requests] + [request.adapter for request in engine.pooling]
    assert seen == [digest]
    assert not +registry.held


def test_classes_of_one_adapter_as_it_is(
    client: TestClient, engine: FakeEngine, registry: FakeRegistry, tmp_path: Path
) -> None:
    """A single member of scale 1, which is the default, is the adapter itself, with its labels and head."""
    version = registry.add(
        "moods", tmp_path, task="SEQ_CLS", labels=("a", "b", "c"), unmixable="it has a head"
    )
    body = {"model": "tiny", "adapters": [{"name": "moods"}], "input": "hi"}
    answer = client.post("/v1/classify", json=body)

    assert answer.json()["model"] == "moods@1"
    assert answer.headers["x-adapter-digest"] == version.digest
    assert answer.json()["data"][0]["label"] in "abc"
    assert engine.pooling[0].adapter == version.digest


def test_every_member_is_held_until_the_end(
    context: ServerContext, registry: FakeRegistry, pair: tuple[AdapterVersion, AdapterVersion]
) -> None:
    shares = [AdapterShare(name="legal", scale=0.7), AdapterShare(name="formal", scale=-2)]
    lease = acquire(context, LOCAL, Asked("tiny"), shares)
    assert registry.held == {pair[0].digest: 1, pair[1].digest: 1}
    assert lease.digest is not None
    assert context.metrics.active_names([lease.digest]) == ["formal", "legal"]
    with pytest.raises(AdapterNotFound):  # of the fake, which has no files: the mixture itself is known
        context.mixtures.load(lease.digest)

    lease.release()
    lease.release()
    assert not +registry.held
    assert context.metrics.active_names([lease.digest]) == []


def test_mixtures_have_one_label_in_the_metrics(
    client: TestClient, context: ServerContext, pair: tuple[AdapterVersion, AdapterVersion]
) -> None:
    for scale in (0.1, 0.2):
        shares = [{"name": "legal", "scale": scale}]
        assert client.post(TEXT, json={"model": "tiny", "prompt": "a", "adapters": shares}).status_code == 200
    assert b'multilora_requests_total{adapter="mixture",outcome="success"} 2.0' in context.metrics.render()


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        (
            {"model": "legal"},
            400,
            "model",
            "model: must be `tiny`, the base's name, when adapters is given",
        ),
        (
            {"adapters": [{"name": "legal"}, {"name": "nobody"}]},
            404,
            "adapters[1].name",
            "The model `nobody` does not exist.",
        ),
        (
            {"adapters": [{"name": "legal@2"}, {"name": "formal"}, {"name": "legal", "scale": 0.5}]},
            400,
            "adapters[2].name",
            "adapters[2].name: `legal@2` is named twice; name it once, with the sum of the scales",
        ),
        (
            {"adapters": [{"name": "legal"}, {"name": "heady"}]},
            400,
            "adapters[1].name",
            "adapters[1].name: `heady@1` can't be scaled or mixed: it replaces model.norm; "
            "name it alone, as `model`",
        ),
        (
            {"adapters": [{"name": "heady", "scale": 0.5}]},
            400,
            "adapters[0].name",
            "adapters[0].name: `heady@1` can't be scaled or mixed: it replaces model.norm; "
            "name it alone, as `model`",
        ),
        (
            {"adapters": [{"name": "legal"}, {"name": "formal"}, {"name": "wide"}]},
            400,
            "adapters",
            "adapters: the ranks add up to 271, more than 256 (--max-adapter-rank)",
        ),
        (
            {"adapters": []},
            400,
            "adapters",
            "adapters: List should have at least 1 item after validation, not 0",
        ),
        (
            {"adapters": [{"name": f"a{index}"} for index in range(9)]},
            400,
            "adapters",
            "adapters: List should have at most 8 items after validation, not 9",
        ),
        (
            {"adapters": [{"name": "legal", "scale": 100.5}]},
            400,
            "adapters[0].scale",
            "adapters[0].scale: Input should be less than or equal to 100",
        ),
        (
            {"adapters": [{"name": "legal", "scale": "1"}]},
            400,
            "adapters[0].scale",
            "adapters[0].scale: Input should be a valid number",
        ),
        (
            {"adapters": [{"name": "legal", "weight": 1}]},
            400,
            "adapters[0].weight",
            "Unrecognized request argument supplied: adapters[0].weight",
        ),
        (
            {"adapters": [{"scale": 1}]},
            400,
            "adapters[0].name",
            "Missing required parameter: 'adapters[0].name'.",
        ),
    ],
)
def test_mixtures_that_are_refused(
    fields: dict[str, Any],
    status: int,
    param: str,
    says: str,
    client: TestClient,
    engine: FakeEngine,
    registry: FakeRegistry,
    pair: tuple[AdapterVersion, AdapterVersion],
    tmp_path: Path,
) -> None:
    registry.add("heady", tmp_path, unmixable="it replaces model.norm")
    registry.add("wide", tmp_path, rank=255)
    for route, own in ROUTES.items():
        body = {"model": "tiny", "adapters": MIXED, **own, **fields}
        answer = client.post(route, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["message"]) == (status, param, says)
    assert not engine.requests
    assert not engine.pooling
    assert not +registry.held


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_scales_are_finite(
    number: str, client: TestClient, pair: tuple[AdapterVersion, AdapterVersion]
) -> None:
    body = f'{{"model": "tiny", "prompt": "a", "adapters": [{{"name": "legal", "scale": {number}}}]}}'
    answer = client.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_member_that_does_not_serve_the_route(
    client: TestClient, registry: FakeRegistry, pair: tuple[AdapterVersion, AdapterVersion], tmp_path: Path
) -> None:
    registry.add("vectors", tmp_path, task="FEATURE_EXTRACTION")
    shares = [*MIXED, {"name": "vectors", "scale": 0.5}]
    answer = client.post(TEXT, json={"model": "tiny", "prompt": "a", "adapters": shares})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("The adapter `vectors@1` was trained for FEATURE_")
    assert not +registry.held
    assert client.post("/v1/embeddings", json={"model": "tiny", "input": "a", "adapters": shares}).is_success


def test_a_member_deleted_between_resolve_and_hold(
    context: ServerContext,
    registry: FakeRegistry,
    pair: tuple[AdapterVersion, AdapterVersion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold = registry.hold

    def gone(digest: str) -> None:
        if digest == pair[1].digest:
            raise AdapterNotFound(digest)
        hold(digest)

    monkeypatch.setattr(registry, "hold", gone)
    shares = [AdapterShare(name="legal"), AdapterShare(name="formal")]
    with pytest.raises(APIError, match=r"`legal@2\*1\+formal@1\*1` does not exist"):
        acquire(context, LOCAL, Asked("tiny"), shares)
    assert not +registry.held


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_a_mixture_that_can_not_be_loaded_is_the_requests_fault(
    route: str,
    stream: bool,
    client: TestClient,
    engine: FakeEngine,
    registry: FakeRegistry,
    pair: tuple[AdapterVersion, AdapterVersion],
) -> None:
    """A version was checked when it was published; what the members take together is known only now."""

    def fail(request: Any) -> Any:
        raise AdapterTooLarge("mix fewer")

    engine.script = engine.pooled = fail
    fields = {"stream": stream} if route != "/v1/embeddings" else {}
    answer = client.post(route, json={"model": "tiny", "adapters": MIXED, **ROUTES[route], **fields})
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "adapters"
    assert answer.json()["error"]["message"] == "mix fewer"

    assert client.post(route, json={"model": "legal", **ROUTES[route], **fields}).status_code == 500
    assert not +registry.held
