"""By which name a version is told of, and to whom."""

from __future__ import annotations

import pytest

from adapters.registry.names import parse_ref
from adapters.registry.records import AdapterVersion


@pytest.mark.parametrize(
    ("owner", "caller", "expected"),
    [
        ("default", "default", "law@3"),
        ("default", "acme", "default/law@3"),
        ("acme", "acme", "acme/law@3"),
        ("acme", "default", "acme/law@3"),
        ("acme", "other", "acme/law@3"),
    ],
)
def test_a_caller_can_ask_by_the_name_that_it_is_told(owner: str, caller: str, expected: str) -> None:
    version = AdapterVersion("law", 3, "d", "b", 0.0, 1, 1, 1, (), tenant=owner)
    assert version.ref_for(caller) == expected
    ref = parse_ref(expected)
    assert (ref.tenant or caller, ref.name, ref.version) == (owner, "law", 3)
