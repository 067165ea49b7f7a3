"""What publishing looks at beside the files: digests, quotas, lineage; on both databases."""

from __future__ import annotations

import json

import pytest

from adapters.errors import InvalidAdapter, QuotaExceeded
from adapters.registry.lineage import LINEAGE_FILE
from adapters.registry.records import Caller, DataFile, Lineage, Quota
from adapters.registry.registry import Registry
from tests.adapters.registry.conftest import Shop

ACME = Caller("acme", "key-1")


def test_an_expected_digest(shop: Shop, registry: Registry) -> None:
    version, _ = registry.publish("tone", shop.files.config, shop.files.weights)
    expected = registry.publish("other", shop.files.config, shop.files.weights, digest=version.digest)
    assert expected[0].digest == version.digest
    with pytest.raises(InvalidAdapter, match=rf"digest {version.digest}, not '{'0' * 64}' as was expected"):
        registry.publish("third", shop.files.config, shop.files.weights, digest="0" * 64)
    assert registry.versions("third") == ()


def test_quotas(shop: Shop, registry: Registry) -> None:
    size = shop.files.weights.stat().st_size
    registry.tenants.put("acme", Quota(max_versions=2))
    shop.publish(registry, "a", 1, caller=ACME)
    shop.publish(registry, "b", 1, caller=ACME)
    assert shop.publish(registry, "b", 1, caller=ACME) == "acme/b@1"  # nothing new
    with pytest.raises(QuotaExceeded, match="tenant 'acme' has 2 versions, and its quota max_versions is 2"):
        shop.publish(registry, "b", 2, caller=ACME)
    registry.delete("a", caller=ACME)
    assert shop.publish(registry, "b", 2, caller=ACME) == "acme/b@2"
    registry.tenants.put("acme", Quota(max_bytes=3 * size))
    assert shop.publish(registry, "b", 3, caller=ACME) == "acme/b@3"
    with pytest.raises(QuotaExceeded, match=f"has {3 * size} bytes of weights; with {size} more"):
        shop.publish(registry, "b", 4, caller=ACME)
    registry.tenants.put("acme", Quota(max_rank=3))
    with pytest.raises(QuotaExceeded, match="rank 4, and the quota max_rank of tenant 'acme' is 3"):
        shop.publish(registry, "b", 4, caller=ACME)
    with pytest.raises(QuotaExceeded, match="max_rank"):
        shop.publish(registry, "acme/b", 4)  # the quota is the owner's, whoever publishes
    registry.tenants.put("acme", Quota(max_rank=4))
    # What was refused took no number.
    assert shop.publish(registry, "b", 4, caller=ACME) == "acme/b@4"


def test_lineage_is_kept_and_followed(shop: Shop, registry: Registry) -> None:
    registry.tenants.put("acme")
    shop.publish(registry, "first", 1, caller=ACME)
    first = registry.resolve("first", ACME)
    told = {
        "parent": "first@1",
        "parent_digest": first.digest,
        "job": "ft-7",
        "data": [{"name": "train.jsonl", "sha256": "a" * 64}],
        "scores": {"accuracy": 0.5},
        "code": "whatever else",
    }
    (shop.files.folder / LINEAGE_FILE).write_text(json.dumps(told))
    second, is_new = registry.publish_folder("second", shop.files.folder, caller=ACME)
    wanted = Lineage(
        "first@1", first.digest, "ft-7", (DataFile("train.jsonl", "a" * 64),), (("accuracy", 0.5),)
    )
    assert (is_new, second.lineage) == (True, wanted)
    assert registry.publish_folder("second", shop.files.folder, caller=ACME) == (second, False)
    assert shop.publish(registry, "second", 8, caller=ACME) == second.ref  # says nothing of where it is from
    told["scores"] = {"accuracy": 0.75}
    (shop.files.folder / LINEAGE_FILE).write_text(json.dumps(told))
    third, is_new = registry.publish_folder("second", shop.files.folder, caller=ACME)
    assert (is_new, third.version, third.digest) == (True, 2, second.digest)
    assert registry.lineage("second", ACME) == (third, first)
    assert registry.lineage("acme/second@1") == (second, first)
    registry.delete("first", caller=ACME)
    assert [version.state for version in registry.lineage("second", ACME)] == ["ready", "deleted"]
    registry.close()
    assert shop.open().resolve("second", ACME).lineage == third.lineage


def test_a_parent_is_found_by_its_digest_where_its_name_means_another(shop: Shop, registry: Registry) -> None:
    shop.publish(registry, "first", 1)
    shop.publish(registry, "first", 2)
    old, new = registry.versions("first")
    for parent, digest, expected in (
        ("first", old.digest, old),
        ("first@2", None, new),
        ("gone@1", new.digest, new),
        ("gone@1", None, None),
        ("not a name", None, None),
        (None, "0" * 64, None),
    ):
        config = shop.files.set(lora_alpha=hash((parent, digest)) % 1000 + 10)
        lineage = Lineage(parent, digest)
        child, _ = registry.publish("child", config, shop.files.weights, lineage=lineage)
        assert registry.lineage(child.ref) == ((child,) if expected is None else (child, expected))
    loop = Lineage(parent=f"child@{child.version + 1}")
    child, _ = registry.publish("child", shop.files.set(lora_alpha=3), shop.files.weights, lineage=loop)
    assert registry.lineage("child") == (child,)


def test_a_bare_parent_is_its_publisher_s_whoever_asks(shop: Shop, registry: Registry) -> None:
    registry.tenants.put("acme")
    shop.publish(registry, "first", 1)
    shop.publish(registry, "child", 2, lineage=Lineage("first"))
    registry.share("child", "acme")
    shop.publish(registry, "first", 3, caller=ACME)
    assert [version.ref for version in registry.lineage("default/child", ACME)] == ["child@1"]
    registry.share("first", "acme")
    assert [version.ref for version in registry.lineage("default/child", ACME)] == ["child@1", "first@1"]


def test_a_source_of_any_characters(shop: Shop, registry: Registry) -> None:
    version, _ = registry.publish(
        "tone", shop.files.config, shop.files.weights, source="a\0b\udc80" + "x" * 2000
    )
    assert version.source == "ab?" + "x" * 997
    registry.close()
    assert shop.open().resolve("tone") == version
