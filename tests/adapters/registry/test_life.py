"""Deprecating, wanting, sharing and deleting, and what the audit log says of them; on both databases."""

from __future__ import annotations

import pytest

from adapters.errors import (
    AdapterConflict,
    AdapterForbidden,
    AdapterNotFound,
    InvalidName,
    QuotaExceeded,
)
from adapters.registry import life as module
from adapters.registry.records import LOCAL, Caller, Target
from adapters.registry.registry import Registry
from tests.adapters.registry.conftest import Shop

ACME, RIVAL = Caller("acme", "key-1"), Caller("rival", "key-2")


def test_a_deprecated_version_goes_on_answering(shop: Shop, registry: Registry) -> None:
    shop.publish(registry, "tone")
    version = registry.deprecate("tone@1", "use tone@2\0")
    assert (version.state, version.reason) == ("deprecated", "use tone@2")
    assert registry.resolve("tone") == version
    assert registry.list() == (version,)
    assert registry.deprecate("tone", None).state == "ready"
    with pytest.raises(AdapterNotFound):
        registry.deprecate("tone@2", "no such")


def test_what_is_wanted_survives_a_restart(shop: Shop, registry: Registry) -> None:
    for name in ("one", "two"):
        shop.publish(registry, name)
    registry.want("one", "pinned")
    registry.want("two@1", "loaded")
    registry.close()
    again = shop.open()
    assert [(version.ref, version.desired) for version in again.wanted()] == [
        ("one@1", "pinned"),
        ("two@1", "loaded"),
    ]
    again.want("one", "")
    again.delete("two")
    assert again.wanted() == ()
    assert again.find("two@1").desired == ""


def test_what_an_alias_means_is_deleted_only_by_force(shop: Shop, registry: Registry) -> None:
    for alpha in (1, 2, 3, 4):
        shop.publish(registry, "tone", alpha)
    registry.set_alias("tone", "prod", [Target(1, 40), Target(2, 60)], shadow=3)
    for ref, alias in (
        ("tone@1", "prod"),
        ("tone@3", "prod"),
        ("tone@4", "default"),
        ("tone@prod", "several"),
    ):
        with pytest.raises(Exception, match=alias):
            registry.delete(ref)
    with pytest.raises(AdapterConflict, match="tone can't be deleted while alias 'tone@prod' means it"):
        registry.delete("tone")
    assert len(registry.list()) == 4
    registry.delete("tone@3", force=True)
    registry.delete("tone@1", force=True)
    registry.delete("tone@4", force=True)
    default, prod = registry.aliases("tone")
    assert (prod.targets, prod.shadow) == ((Target(2),), None)
    assert default.targets == (Target(2),)
    registry.delete("tone@2", force=True)
    with pytest.raises(AdapterNotFound):
        registry.aliases("tone")
    assert shop.publish(registry, "tone", 1) == "tone@5"
    assert registry.resolve("tone").version == 5
    assert [version.state for version in registry.history()] == ["deleted"] * 4 + ["ready"]
    registry.delete("tone")
    with pytest.raises(AdapterNotFound):
        registry.delete("tone")
    with pytest.raises(AdapterNotFound):
        registry.delete("tone@5")


def test_tenants_have_names_of_their_own(shop: Shop, registry: Registry) -> None:
    for tenant in ("acme", "rival"):
        registry.tenants.put(tenant)
    ours = shop.publish(registry, "legal", 1)
    theirs = shop.publish(registry, "legal", 2, caller=ACME)
    assert (ours, theirs) == ("legal@1", "acme/legal@1")
    assert shop.publish(registry, "acme/legal", 3) == "acme/legal@2"  # by an operator
    assert shop.publish(registry, "acme/legal", 3, caller=ACME) == "acme/legal@2"
    with pytest.raises(AdapterForbidden, match="only 'acme' itself"):
        shop.publish(registry, "acme/legal", 4, caller=RIVAL)
    with pytest.raises(Exception, match="no tenant 'nobody'"):
        shop.publish(registry, "nobody/legal", 4)
    with pytest.raises(InvalidName):
        shop.publish(registry, "No/legal", 4)
    assert registry.resolve("legal", ACME).ref == "acme/legal@2"
    assert registry.resolve("legal").ref == "legal@1"
    assert [version.ref for version in registry.list(ACME)] == ["acme/legal@1", "acme/legal@2"]
    assert registry.list(RIVAL) == ()


def test_sharing(shop: Shop, registry: Registry) -> None:
    for tenant in ("acme", "rival"):
        registry.tenants.put(tenant)
    shop.publish(registry, "legal", 1, caller=ACME)
    for hidden in (registry.route, registry.find, registry.lineage):
        with pytest.raises(AdapterNotFound):
            hidden("acme/legal", RIVAL)
    assert registry.versions("acme/legal", RIVAL) == ()
    registry.share("legal", "rival", caller=ACME)
    registry.share("legal", "rival", caller=ACME)  # says the same twice
    assert registry.shares("legal", ACME) == ("rival",)
    assert registry.resolve("acme/legal", RIVAL).ref == "acme/legal@1"
    for change in (
        lambda: registry.deprecate("acme/legal", "mine", caller=RIVAL),
        lambda: registry.delete("acme/legal", caller=RIVAL),
        lambda: registry.want("acme/legal", "pinned", caller=RIVAL),
        lambda: registry.share("acme/legal", "*", caller=RIVAL),
        lambda: registry.shares("acme/legal", RIVAL),
    ):
        with pytest.raises(AdapterForbidden, match="acme/legal is shared with you"):
            change()
    registry.unshare("legal", "rival", caller=ACME)
    with pytest.raises(AdapterNotFound):
        registry.resolve("acme/legal", RIVAL)
    registry.share("legal", "*", caller=ACME)
    assert registry.resolve("acme/legal", RIVAL).ref == "acme/legal@1"
    wrong = {
        "acme": "acme/legal belongs to tenant 'acme' already",
        "Rival": "capital",
        "**": "must be 1 to 63",
    }
    for other, message in wrong.items():
        with pytest.raises(InvalidName, match=message):
            registry.share("legal", other, caller=ACME)
    with pytest.raises(AdapterNotFound):
        registry.share("nothing", "rival", caller=ACME)
    registry.delete("legal", caller=ACME)
    shop.publish(registry, "legal", 2, caller=ACME)
    with pytest.raises(AdapterNotFound):  # who uses the name again has to share it again
        registry.resolve("acme/legal", RIVAL)


def test_a_tenant_s_successor_shares_nothing(shop: Shop, registry: Registry) -> None:
    """An upload that is shared before it is refused leaves a share, and no version that could be deleted."""
    registry.tenants.put("acme")
    registry.tenants.put("rival")
    begun = registry.begin("legal", b"{", shop.files.weights, caller=ACME)
    registry.share("legal", "rival", caller=ACME)
    assert registry.finish(begun).state == "refused"
    registry.tenants.remove("acme")
    registry.tenants.put("acme")
    shop.publish(registry, "legal", 2, caller=ACME)
    assert registry.shares("legal", ACME) == ()
    with pytest.raises(AdapterNotFound):
        registry.resolve("acme/legal", RIVAL)


def test_an_adapter_is_shared_with_a_bounded_number(
    shop: Shop, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHARES", 2)
    shop.publish(registry, "tone")
    for other in ("a", "b"):
        registry.share("tone", other)
    registry.share("tone", "b")  # again
    with pytest.raises(QuotaExceeded, match="tone is shared with 2 tenants, the most there may be"):
        registry.share("tone", "c")
    registry.unshare("tone", "a")
    registry.share("tone", "c")
    assert registry.shares("tone") == ("b", "c")


def test_the_audit_log_tells_each_change_to_whom_it_concerns(shop: Shop, registry: Registry) -> None:
    registry.tenants.put("acme")
    start = registry.audit(limit=1000)[-1].id
    shop.publish(registry, "legal", 1, caller=ACME)
    shop.publish(registry, "tone", 1)
    registry.deprecate("acme/legal@1", "old")
    registry.delete("acme/legal")
    entries = registry.audit(after=start)
    assert [entry.id for entry in entries] == list(range(start + 1, start + 1 + len(entries)))
    told = [(entry.tenant, entry.actor, entry.action, entry.subject) for entry in entries]
    assert told == [
        ("acme", "key-1", "publish", "acme/legal@1"),
        ("acme", "key-1", "promote", "acme/legal@default"),
        ("default", "local", "publish", "tone@1"),
        ("default", "local", "promote", "tone@default"),
        ("acme", "local", "deprecate", "acme/legal@1"),
        ("acme", "local", "delete", "acme/legal@1"),
        ("acme", "local", "remove_alias", "acme/legal@default"),
    ]
    assert entries[1].before is None
    assert entries[1].after == {"targets": {"1": 100}, "shadow": None, "revision": 1}
    assert entries[4].before == {"state": "ready", "reason": ""}
    assert entries[4].after == {"state": "deprecated", "reason": "old"}
    assert [entry.id for entry in registry.audit(ACME, after=start, limit=3)] == [
        entry.id for entry in entries if entry.tenant == "acme"
    ][:3]
    assert registry.audit(RIVAL) == ()
    assert [entry.action for entry in registry.audit(subject="tone@default")] == ["promote"]


def test_the_audit_log_of_one_thing(shop: Shop, registry: Registry) -> None:
    registry.tenants.put("acme")
    for name, caller in (("tone", LOCAL), ("tone-2", LOCAL), ("tone", ACME)):
        shop.publish(registry, name, 1, caller=caller)
    registry.share("tone", "rival", caller=ACME)

    def subjects(subject: str, caller: Caller = LOCAL) -> list[str]:
        return sorted({entry.subject for entry in registry.audit(caller, subject=subject)})

    own = ["acme/tone", "acme/tone@1", "acme/tone@default"]
    assert subjects("tone", ACME) == subjects("acme/tone", ACME) == subjects("acme/tone") == own
    assert subjects("tone@1", ACME) == subjects("acme/tone@1") == ["acme/tone@1"]
    assert subjects("tone") == subjects("default/tone") == ["tone@1", "tone@default"]
    assert subjects("acme/tone", RIVAL) == subjects("tone_2") == subjects("t%") == []
