"""What the server says of itself is true: whatever fits its OpenAPI document, and much that does not, gets a
documented answer and never a 5xx.

Schemathesis makes the requests, for each route those of its own schemas, and sends them to the application on
a real registry and an engine without a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.access.rules import RULES, shape
from server.api.openapi import BODIES, OPTIONAL, UPLOADS
from tests.server.api.stand import Stand, standing

EXAMPLES = 12
"""Requests for each route that fit the document, and about as many that do not."""
KNOWN = {
    "ref": ["shop", "shop@1", "shop@default", "default/shop@2", "shop@9", "acme/shop"],
    "name": ["shop", "default", "acme", "shop@1"],
    "model": ["shop", "shop@1", "tiny"],
    "alias": ["default", "prod"],
    "tenant": ["acme", "default", "*"],
    "file": ["adapter_config.json", "adapter_model.safetensors", "lineage.json", "labels.json"],
}
"""Parameters that mean something; chance alone finds none of them."""
KEY = "an-operators-key-for-tests"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ROUTES = sorted(RULES)
MERGE = "GET /v1/adapters/{ref}/merged"
"""Starts a process that loads the base, of which there is none here."""


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """An application whose caller is an operator, whatever keys are made."""
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder)) as stand:
        settings = {"admin_key": SecretStr(KEY), "adapter_dir": Path(folder)}
        stand.context.settings = stand.context.settings.model_copy(update=settings)
        stand.client.headers["authorization"] = f"Bearer {KEY}"
        yield stand


@pytest.fixture
def stocked(stand: Stand) -> Stand:
    """With two versions at least and another tenant, whatever was deleted before."""
    for alpha in (1, 2):
        assert stand.upload("shop", alpha).status_code in (200, 201)
    assert stand.client.put("/v1/tenants/acme", json={}).status_code == 200
    file, job = train(stand)
    KNOWN.update(file_id=[file], job_id=[job], after=[file, job])
    return stand


def train(stand: Stand) -> tuple[str, str]:
    """The ids of a file and of a job."""
    jobs = stand.client.get("/v1/fine_tuning/jobs", params={"limit": 1}).json()["data"]
    if jobs and jobs[0]["status"] != "cancelled":
        return jobs[0]["training_file"], jobs[0]["id"]
    data: dict[str, Any] = {"file": ("x.jsonl", b"{}\n"), "purpose": (None, "fine-tune")}
    file = stand.client.post("/v1/files", files=data).json()["id"]
    job = stand.client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file}).json()
    return file, job["id"]


@pytest.fixture(scope="module")
def document(stand: Stand) -> dict[str, Any]:
    answer = stand.client.get("/openapi.json")
    assert answer.status_code == 200
    result: dict[str, Any] = answer.json()
    return result


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_it_holds_every_route_with_its_rule(document: dict[str, Any]) -> None:
    rules = {shape(route): operation["x-scope"] for route, operation in operations(document).items()}
    assert rules == {shape(route): rule for route, rule in RULES.items()}


def test_it_holds_every_body(document: dict[str, Any]) -> None:
    found = operations(document).items()
    bodies = {route: operation["requestBody"] for route, operation in found if "requestBody" in operation}
    assert bodies.keys() == {*BODIES, *UPLOADS}
    assert {route for route, body in bodies.items() if not body["required"]} == OPTIONAL
    for route, model in BODIES.items():
        schema = bodies[route]["content"]["application/json"]["schema"]
        name = schema["$ref"].rpartition("/")[2]
        properties = document["components"]["schemas"][name]["properties"]
        assert properties.keys() == model.model_fields.keys(), route


@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_is_a_documented_one(route: str, stocked: Stand, document: dict[str, Any]) -> None:
    if route == MERGE:
        pytest.skip("it takes a base")
    method, _, template = route.partition(" ")
    path = next(path for path in document["paths"] if shape(path) == shape(template))
    schema = schemathesis.openapi.from_dict(document)
    schema.app = stocked.app
    operation, model = schema[path][method], BODIES.get(f"{method} {path}")

    @seed(5)
    @settings(
        max_examples=2 * EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        way = data.draw(st.sampled_from(list(schemathesis.GenerationMode)))
        case = data.draw(operation.as_strategy(generation_mode=way))
        for parameter in case.path_parameters:
            if data.draw(st.booleans()):
                case.path_parameters[parameter] = data.draw(st.sampled_from(KNOWN.get(parameter, ["0" * 16])))
        if isinstance(case.body, dict) and model is not None and data.draw(st.booleans()):
            # With all fields at once one of them is refused nearly always.
            kept = {name for name, field in model.model_fields.items() if field.is_required()}
            kept |= {data.draw(st.sampled_from(sorted(case.body, key=repr)))} if case.body else set()
            case.body = {name: value for name, value in case.body.items() if name in kept}
            if "model" in model.model_fields:
                case.body["model"] = data.draw(st.sampled_from(KNOWN["model"]))
            if "training_file" in model.model_fields:
                case.body["training_file"] = data.draw(st.sampled_from(KNOWN["file_id"]))
        answer = case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code not in (401, 405)

    check()
