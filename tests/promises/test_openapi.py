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
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.access.rules import RULES, shape
from server.api.openapi import BODIES, OPTIONAL, UPLOAD
from tests.server.api.stand import Stand, standing

EXAMPLES = 12
"""Requests for each route that fit the document, and as many that do not."""
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
    """An application with two adapters, so that some names mean something."""
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder)) as stand:
        stand.publish("shop", 1, 2)
        yield stand


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
    assert bodies.keys() == {*BODIES, UPLOAD}
    assert {route for route, body in bodies.items() if not body["required"]} == OPTIONAL
    for route, model in BODIES.items():
        schema = bodies[route]["content"]["application/json"]["schema"]
        name = schema["$ref"].rpartition("/")[2]
        properties = document["components"]["schemas"][name]["properties"]
        assert properties.keys() == model.model_fields.keys(), route


@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_is_a_documented_one(route: str, stand: Stand, document: dict[str, Any]) -> None:
    if route == MERGE:
        pytest.skip("it takes a base")
    method, _, template = route.partition(" ")
    path = next(path for path in document["paths"] if shape(path) == shape(template))
    schema = schemathesis.openapi.from_dict(document)
    schema.app = stand.app
    operation = schema[path][method]

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
        case.call_and_validate(checks=CHECKS)

    check()
