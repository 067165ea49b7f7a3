"""What is shown of versions that do not answer any more, and where versions come from."""

from __future__ import annotations

import pytest

from adapters.errors import AdapterNotFound
from adapters.registry.records import Caller, Lineage
from adapters.registry.registry import Registry
from tests.adapters.registry.conftest import Shop

ACME = Caller("acme", "key of acme")
RIVAL = Caller("rival", "key of rival")


def refs(registry: Registry, ref: str) -> list[str]:
    return [version.ref for version in registry.lineage(ref)]


def test_tombstones_are_shown_to_those_who_saw_the_version(shop: Shop, registry: Registry) -> None:
    for tenant in ("acme", "rival"):
        registry.tenants.put(tenant)
    shop.publish(registry, "tone", 1, caller=ACME)
    shop.publish(registry, "tone", 2, caller=ACME)
    registry.delete("tone@1", caller=ACME)
    assert registry.find("tone@1", ACME).state == "deleted"
    assert registry.find("tone", ACME).version == 2
    assert [(v.version, v.state) for v in registry.history(ACME)] == [(1, "deleted"), (2, "ready")]
    assert registry.history(RIVAL) == ()
    registry.share("tone", "rival", caller=ACME)
    assert registry.find("acme/tone@1", RIVAL).state == "deleted"
    registry.delete("tone", caller=ACME)
    assert registry.find("tone", ACME).ref == "acme/tone@2"  # the newest there was
    assert registry.history(RIVAL) == ()
    for ref in ("acme/tone@2", "acme/tone"):
        with pytest.raises(AdapterNotFound):
            registry.find(ref, RIVAL)
    with pytest.raises(AdapterNotFound):
        registry.find("tone@3", ACME)


def test_parents_by_name_and_by_content(shop: Shop, registry: Registry) -> None:
    shop.publish(registry, "tone", 1)
    first = registry.resolve("tone@1").digest
    shop.publish(registry, "tone", 2, lineage=Lineage(parent="tone@1", parent_digest=first))
    shop.publish(registry, "copy", 1)
    assert refs(registry, "tone@2") == ["tone@2", "tone@1"]
    shop.publish(registry, "voice", 3, lineage=Lineage(parent="tone@1", parent_digest="0" * 64))
    assert refs(registry, "voice") == ["voice@1"]  # the name means other content than was meant
    shop.publish(registry, "voice", 4, lineage=Lineage(parent="gone@9", parent_digest=first))
    assert refs(registry, "voice") == ["voice@2", "copy@1"]
    registry.delete("tone@1")
    assert refs(registry, "tone@2") == ["tone@2", "tone@1"]  # a tombstone still tells


def test_a_circle_ends(shop: Shop, registry: Registry) -> None:
    shop.publish(registry, "tone", 1, lineage=Lineage(parent="tone@2"))
    shop.publish(registry, "tone", 2, lineage=Lineage(parent="tone@1"))
    assert refs(registry, "tone@2") == ["tone@2", "tone@1"]
    assert refs(registry, "tone@1") == ["tone@1", "tone@2"]
