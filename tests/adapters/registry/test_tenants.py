"""Tenants: made, changed, removed, and what goes with them; on SQLite and on Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import insert, select

from adapters.errors import AdapterConflict, InvalidName, TenantNotFound
from adapters.registry.records import LOCAL, Caller, Quota
from adapters.registry.schema import ADAPTERS, SHARES, VERSIONS
from tests.adapters.registry.access import Replica, replica

QUOTA = Quota(
    max_versions=5, max_bytes=10**12, max_rank=64, max_in_flight=8, tokens_per_minute=1000, weight=2.5
)


@pytest.fixture
def here(migrated_url: str) -> Iterator[Replica]:
    with replica(migrated_url) as running:
        yield running


def add_version(here: Replica, tenant: str, state: str) -> None:
    texts = (
        "digest",
        "base_digest",
        "source",
        "variant",
        "unmixable",
        "proof_status",
        "reason",
        "desired",
        "replica",
    )
    lists = ("target_modules", "labels", "invocation")
    numbers = ("created", "size", "rank", "parameters", "changed")
    with here.database.write() as write:
        if write.connection.execute(select(ADAPTERS).where(ADAPTERS.c.tenant == tenant)).first() is None:
            write.connection.execute(insert(ADAPTERS).values(tenant=tenant, name="legal", next_version=2))
        row = {**dict.fromkeys(texts, ""), **{name: [] for name in lists}, **dict.fromkeys(numbers, 0)}
        keys = {"tenant": tenant, "name": "legal", "version": write.revision, "state": state, "lineage": {}}
        write.connection.execute(insert(VERSIONS).values(**row, **keys, revision=write.revision))


def test_the_default_tenant_is_always_there(here: Replica) -> None:
    assert [tenant.name for tenant in here.tenants.list()] == ["default"]
    assert here.tenants.quota("default") == Quota()
    here.tenants.put("default", QUOTA)
    assert here.tenants.get("default").quota == QUOTA
    with pytest.raises(AdapterConflict, match="can't be removed"):
        here.tenants.remove("default")


def test_what_is_put_is_got_and_survives(here: Replica, migrated_url: str) -> None:
    made = here.tenants.put("acme", QUOTA)
    changed = here.tenants.put("acme", Quota(max_rank=8))
    assert (made.name, made.quota) == ("acme", QUOTA)
    assert changed.created == made.created
    for there in (here, Replica(migrated_url)):
        assert there.tenants.get("acme") == changed
        assert [tenant.name for tenant in there.tenants.list()] == ["acme", "default"]
        assert there.tenants.quota("acme") == Quota(max_rank=8)
        if there is not here:
            there.close()


def test_another_replica_sees_it_when_it_looks(here: Replica, migrated_url: str) -> None:
    with replica(migrated_url) as there:
        here.tenants.put("acme", QUOTA)
        there.catch_up()
        assert there.tenants.quota("acme") == QUOTA
        here.tenants.remove("acme")
        there.catch_up()
        with pytest.raises(TenantNotFound):
            there.tenants.get("acme")


def test_a_tenant_is_called_by_the_rules(here: Replica) -> None:
    for name in ("", "Acme", "a/b", "a.b", "-a", "x" * 64, "latest", "base", "7", "*", "a b", "ä"):
        with pytest.raises(InvalidName):
            here.tenants.put(name)
    assert len(here.tenants.list()) == 1
    assert here.audit() == []


def test_nobody_is_removed_twice_or_before_its_adapters(here: Replica) -> None:
    for name in ("acme", "ac\0me"):
        with pytest.raises(TenantNotFound, match="no tenant 'ac"):
            here.tenants.remove(name)
    here.tenants.put("acme")
    here.tenants.put("busy")
    for state in ("refused", "deleted"):
        add_version(here, "acme", state)
    here.tenants.remove("acme")
    with pytest.raises(TenantNotFound):
        here.tenants.remove("acme")
    for state in ("uploaded", "checking", "ready", "deprecated"):
        add_version(here, "busy", state)
        with pytest.raises(AdapterConflict, match="'busy' still has adapters, such as 'legal'"):
            here.tenants.remove("busy")
        with here.database.write() as write:
            write.connection.execute(VERSIONS.delete().where(VERSIONS.c.tenant == "busy"))
    here.tenants.remove("busy")


def test_what_was_a_removed_tenants_is_not_its_successors(here: Replica) -> None:
    """Neither the old keys nor what others shared with the old one."""
    here.tenants.put("acme", QUOTA)
    here.tenants.put("other")
    key, secret = here.keys.create("acme", "old", ("use",))
    with here.database.write() as write:
        write.connection.execute(insert(ADAPTERS).values(tenant="other", name="legal", next_version=2))
        for whom in ("acme", "*"):
            share = {"tenant": "other", "name": "legal", "other": whom, "created": 1.0, "deleted": None}
            write.connection.execute(insert(SHARES).values(**share, revision=write.revision))
    assert here.keys.authenticate(secret) == key

    here.tenants.remove("acme")
    again = here.tenants.put("acme")

    assert again.quota == Quota()
    assert here.keys.authenticate(secret) is None
    assert here.keys.get(key.id).revoked is not None
    assert here.keys.any
    with here.database.read() as connection:
        rows = connection.execute(select(SHARES.c.other, SHARES.c.deleted, SHARES.c.revision)).all()
    left = {row.other: row.deleted for row in rows}
    assert left["*"] is None
    assert left["acme"] is not None


def test_each_change_is_in_the_audit_log(here: Replica) -> None:
    operator = Caller(actor="key-0123456789ab", operator=True)
    here.tenants.put("acme", Quota(max_rank=8), operator)
    here.tenants.put("acme", Quota(max_rank=16), operator)
    here.tenants.remove("acme", LOCAL)
    entries = here.audit()
    assert [(entry.tenant, entry.actor, entry.action, entry.subject) for entry in entries] == [
        ("acme", "key-0123456789ab", "tenant.put", "acme"),
        ("acme", "key-0123456789ab", "tenant.put", "acme"),
        ("acme", "local", "tenant.remove", "acme"),
    ]
    ranks = [(e.before and e.before["max_rank"], e.after and e.after["max_rank"]) for e in entries]
    assert ranks == [(None, 8), (8, 16), (16, None)]
