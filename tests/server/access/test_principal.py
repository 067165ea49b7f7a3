"""Who has which secret."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from adapters.registry.records import LOCAL, SCOPES, Key, Scope
from server.access.principal import ADMIN_KEY, ANYONE, Access, Principal

ADMIN = "an-operator's-secret"


class Stored:
    """Keys by their secrets; `any` as if there were some."""

    def __init__(self, **keys: Key) -> None:
        self.keys = keys
        self.any = bool(keys)
        self.asked: list[str] = []

    def authenticate(self, secret: str) -> Key | None:
        self.asked.append(secret)
        return self.keys.get(secret)


def key(*scopes: Scope, tenant: str = "acme") -> Key:
    return Key("key-0123456789ab", tenant, "a key", scopes, 0.0)


def test_without_keys_everyone_is_the_local_operator() -> None:
    access = Access(Stored())
    assert not access.required
    for secret in (None, "", "none", "whatever"):
        principal = access.identify(secret)
        assert principal is ANYONE
        assert principal.caller == LOCAL
        assert all(principal.may(scope) for scope in SCOPES)


@pytest.mark.parametrize("secret", [None, "", "wrong", "SECRET", "secret "])
def test_with_a_key_nobody_else_is_known(secret: str | None) -> None:
    access = Access(Stored(secret=key("use")))
    assert access.required
    assert access.identify(secret) is None


def test_a_key_speaks_for_its_tenant_within_its_scopes() -> None:
    principal = Access(Stored(secret=key("use", "publish"))).identify("secret")
    assert principal is not None
    assert (principal.caller.tenant, principal.caller.actor) == ("acme", "key-0123456789ab")
    assert not principal.caller.operator
    assert [scope for scope in SCOPES if principal.may(scope)] == ["use", "publish"]


def test_an_operators_key_may_do_everything() -> None:
    principal = Access(Stored(secret=key("operator"))).identify("secret")
    assert principal is not None
    assert principal.caller.operator
    assert principal.caller.tenant == "acme"
    assert all(principal.may(scope) for scope in SCOPES)


def test_the_admin_key_is_an_operator_and_makes_keys_necessary() -> None:
    stored = Stored()
    access = Access(stored, SecretStr(ADMIN))
    principal = access.identify(ADMIN)
    assert principal is not None
    assert (principal.caller.actor, principal.caller.operator) == (ADMIN_KEY, True)
    assert access.required
    assert stored.asked == []
    for wrong in (None, "", ADMIN[:-1], ADMIN + "x", ADMIN.upper(), "ü" * 20):
        assert access.identify(wrong) is None


def test_the_first_stored_key_counts_at_once() -> None:
    stored = Stored()
    access = Access(stored)
    assert access.identify(None) is ANYONE
    stored.any = True
    assert access.identify(None) is None


def test_a_secret_of_any_length_costs_little() -> None:
    stored = Stored(secret=key("use"))
    assert Access(stored, SecretStr(ADMIN)).identify("x" * 1_000_000) is None
    assert stored.asked == []


def test_a_principal_shows_no_secret() -> None:
    access = Access(Stored(secret=key("use")), SecretStr(ADMIN))
    shown = f"{vars(access)} {access.identify(ADMIN)!r} {access.identify('secret')!r}"
    assert ADMIN not in shown
    assert isinstance(access.identify(ADMIN), Principal)
