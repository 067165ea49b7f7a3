"""API keys: secrets that nobody stores, and what makes them valid; on SQLite and on Postgres."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import select

from adapters.errors import AdapterForbidden, KeyNotFound, QuotaExceeded, TenantNotFound
from adapters.registry import keys as module
from adapters.registry.records import LOCAL, Caller
from adapters.registry.schema import KEYS
from tests.adapters.registry.access import ADMIN, OTHER, Replica, migrated, replica
from tests.postgres import Cluster

SECRET = re.compile(r"ml-[0-9a-f]{12}-[A-Za-z0-9_-]{43}")


@pytest.fixture
def here(migrated_url: str) -> Iterator[Replica]:
    with replica(migrated_url) as running:
        for tenant in ("acme", "other"):
            running.tenants.put(tenant)
        yield running


def test_at_first_there_are_none(here: Replica) -> None:
    assert not here.keys.any
    assert here.keys.list() == ()


def test_a_key_opens_with_its_secret_and_nothing_else(here: Replica) -> None:
    key, secret = here.keys.create("acme", "web shop", ("publish", "use", "use"))
    assert SECRET.fullmatch(secret)
    assert key.id == f"key-{secret[3:15]}"
    assert (key.tenant, key.name, key.scopes, key.expires) == ("acme", "web shop", ("use", "publish"), None)
    assert here.keys.any
    assert here.keys.authenticate(secret) == key
    other, _ = here.keys.create("acme", "another", ("use",))
    for wrong in (
        "",
        key.id,
        secret[:-1],
        secret + "A",
        secret + "\n",
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        secret.replace("ml-", "ML-"),
        f"ml-{other.id[4:]}-{secret[16:]}",
        f"ml-{'0' * 12}-{secret[16:]}",
    ):
        assert here.keys.authenticate(wrong) is None


def test_no_secret_is_stored_or_shown(here: Replica) -> None:
    key, secret = here.keys.create("acme", "web shop", ("use",))
    random = secret[16:]
    with here.database.read() as connection:
        row = connection.execute(select(KEYS)).mappings().one()
    everything = f"{dict(row)} {here.keys.list()} {here.keys.get(key.id)} {here.audit()} {vars(here.keys)}"
    assert random not in everything
    assert row["hash"] not in f"{here.keys.list()} {here.audit()}"
    assert len({here.keys.create("acme", "x", ("use",))[1] for _ in range(5)}) == 5


def test_a_key_expires(here: Replica) -> None:
    now = time.time()
    key, secret = here.keys.create("acme", "short", ("use",), now + 60)
    here.offset = 59
    assert here.keys.authenticate(secret) == key
    here.offset = 61
    assert here.keys.authenticate(secret) is None
    assert here.keys.get(key.id).expires == pytest.approx(now + 60)


def test_a_revoked_key_is_dead_here_at_once_and_on_others_when_they_look(
    here: Replica, migrated_url: str
) -> None:
    with replica(migrated_url) as there:
        key, secret = here.keys.create("acme", "leaked", ("use",))
        there.catch_up()
        assert there.keys.authenticate(secret) == key
        revoked = here.keys.revoke(key.id, ADMIN)
        assert revoked.revoked is not None
        assert here.keys.authenticate(secret) is None
        there.catch_up()
        assert there.keys.authenticate(secret) is None
        assert there.keys.any
        assert here.keys.revoke(key.id, ADMIN) == revoked
    with replica(migrated_url) as later:
        assert later.keys.authenticate(secret) is None
        assert later.keys.any


def test_replicas_learn_of_it_within_a_second(postgres: Cluster) -> None:
    with postgres.database(migrated) as url, replica(url) as here, replica(url) as there:
        key, secret = here.keys.create("default", "leaked", ("use",))
        wait_for(lambda: there.keys.authenticate(secret) == key)
        here.keys.revoke(key.id)
        wait_for(lambda: there.keys.authenticate(secret) is None)


def wait_for(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 1
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_its_own_tenant_and_operators_know_of_a_key(here: Replica) -> None:
    key, secret = here.keys.create("acme", "a", ("use",), caller=ADMIN)
    for key_id in (key.id, "key-000000000000", "", "x" * 5000, "key-\0", key.id + "\n"):
        for call in (here.keys.get, here.keys.revoke):
            with pytest.raises(KeyNotFound) as caught:
                call(key_id, OTHER)
            assert str(caught.value) == f"no key {key_id[:100]!r}"
    assert here.keys.authenticate(secret) == key
    assert here.keys.get(key.id, LOCAL) == here.keys.get(key.id, ADMIN) == key


def test_a_tenants_admin_makes_keys_for_its_tenant_only(here: Replica) -> None:
    here.keys.create("acme", "a", ("use", "publish", "admin"), caller=ADMIN)
    for tenant in ("other", "nobody", "default", "*", "", "a\0"):
        with pytest.raises(TenantNotFound) as caught:
            here.keys.create(tenant, "a", ("use",), caller=ADMIN)
        assert str(caught.value) == f"no tenant {tenant!r}"
    assert len(here.keys.list()) == 1
    here.keys.create("other", "a", ("use",), caller=LOCAL)
    here.keys.create("default", "a", ("use",), caller=LOCAL)
    for tenant in ("nobody", "no\0body"):
        with pytest.raises(TenantNotFound, match="no tenant 'no"):
            here.keys.create(tenant, "a", ("use",), caller=LOCAL)


@pytest.mark.parametrize("scope", ["operator", "metrics"])
def test_what_shows_other_tenants_is_given_by_operators(scope: str, here: Replica) -> None:
    with pytest.raises(AdapterForbidden, match=f"only an operator may give the scope '{scope}'"):
        here.keys.create("acme", "a", ("use", scope), caller=ADMIN)  # type: ignore[arg-type]
    key, _ = here.keys.create("acme", "a", (scope,), caller=Caller("default", "x", True))  # type: ignore[arg-type]
    assert key.scopes == (scope,)


def test_keys_are_listed_by_age_in_pages(here: Replica) -> None:
    made = [here.keys.create(tenant, str(i), ("use",))[0] for i, tenant in enumerate(["acme", "other"] * 3)]
    here.keys.revoke(made[2].id)
    assert [key.id for key in here.keys.list()] == [key.id for key in made]
    mine = here.keys.list("acme")
    assert [key.name for key in mine] == ["0", "2", "4"]
    assert [key.revoked is None for key in mine] == [True, False, True]
    assert here.keys.list("acme", limit=2) == mine[:2]
    assert here.keys.list("acme", after=mine[0].id) == mine[1:]
    for unknown in ("key-000000000000", "key-unknown", "\0"):
        with pytest.raises(KeyNotFound):
            here.keys.list("acme", after=unknown)


def test_a_tenant_has_a_bounded_number_of_valid_keys(here: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    first, _ = here.keys.create("acme", "a", ("use",))
    here.keys.create("acme", "b", ("use",), time.time() - 1)
    for name in "cd":
        here.keys.create("acme", name, ("use",))
    with pytest.raises(QuotaExceeded, match="'acme' has 3 keys, the most there may be"):
        here.keys.create("acme", "e", ("use",))
    here.keys.create("other", "e", ("use",))
    here.keys.revoke(first.id)
    here.keys.create("acme", "e", ("use",))


def test_each_change_is_in_the_audit_log_of_its_tenant(here: Replica) -> None:
    begin = len(here.audit())
    key, _ = here.keys.create("acme", "a", ("use",), 2e9, caller=Caller(actor="op", operator=True))
    here.keys.revoke(key.id, ADMIN)
    here.keys.revoke(key.id, ADMIN)
    shown = {"name": "a", "scopes": ["use"], "expires": 2e9}
    assert [(e.tenant, e.actor, e.action, e.subject, e.before, e.after) for e in here.audit()[begin:]] == [
        ("acme", "op", "key.create", key.id, None, shown),
        ("acme", ADMIN.actor, "key.revoke", key.id, shown, None),
    ]


def test_expired_keys_leave_the_memory(here: Replica) -> None:
    """Or a tenant could fill it with short-lived ones, which no bound counts."""
    here.keys.create("acme", "short", ("use",), time.time() + 60)
    _, secret = here.keys.create("acme", "long", ("use",))
    here.offset = 61
    here.keys.create("acme", "next", ("use",), time.time() + 3600)
    assert sorted(stored.key.name for stored in here.keys._live.values()) == ["long", "next"]
    assert here.keys.authenticate(secret) is not None
    assert [key.name for key in here.keys.list("acme")] == ["short", "long", "next"]
