"""The table of rules: found whatever parameters are called, and nothing else is."""

from __future__ import annotations

import pytest

from adapters.registry.records import SCOPES
from server.access.rules import RULES, find_rule, shape


@pytest.mark.parametrize(
    ("method", "template", "rule"),
    [
        ("GET", "/health", "public"),
        ("GET", "/metrics", "metrics"),
        ("POST", "/v1/completions", "use"),
        ("GET", "/v1/models/{model:path}", "use"),
        ("GET", "/v1/adapters/{anything:path}", "use"),
        ("DELETE", "/v1/adapters/{ref:path}", "admin"),
        ("PUT", "/v1/adapters/{name:path}/aliases/{alias}", "publish"),
        ("PUT", "/v1/tenants/{tenant}", "operator"),
        ("HEAD", "/health", None),
        ("POST", "/health", None),
        ("get", "/health", None),
        ("GET", "/health/", None),
        ("GET", "/v1/adapters/{ref:path}/promote", None),
        ("GET", "/docs", None),
        ("GET", "/openapi.json", "use"),
    ],
)
def test_a_route_has_exactly_its_rule(method: str, template: str, rule: str | None) -> None:
    assert find_rule(method, template) == rule


def test_only_health_is_public_and_scopes_are_real() -> None:
    assert [route for route, rule in RULES.items() if rule == "public"] == ["GET /health"]
    assert set(RULES.values()) == {"public", *SCOPES}


def test_no_two_rules_are_for_the_same_route() -> None:
    assert len({shape(route) for route in RULES}) == len(RULES)
