"""Who sends a request: what a secret says about it, without telling why one says nothing."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from pydantic import SecretStr

from adapters.registry.records import LOCAL, SCOPES, Caller, Key, Scope

MAX_SECRET = 256
"""Characters; more are not even hashed."""
ADMIN_KEY = "admin-key"
"""The actor of MULTILORA_ADMIN_KEY in the audit log."""


class StoredKeys(Protocol):
    """The part of `adapters.registry.keys.Keys` that is needed here."""

    @property
    def any(self) -> bool: ...

    def authenticate(self, secret: str) -> Key | None: ...


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller, and what its key allows within its tenant."""

    caller: Caller
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether a route with this scope is open to it; all are to an operator."""
        return self.caller.operator or scope in self.scopes


ANYONE = Principal(LOCAL, frozenset(SCOPES))
"""Whoever reaches a server without keys, which listens on loopback addresses only."""


class Access:
    """Tells callers by their secrets.

    Args:
        keys: those of the registry.
        admin_key: an operator's secret that is not stored anywhere.
    """

    def __init__(self, keys: StoredKeys, admin_key: SecretStr | None = None) -> None:
        self._keys = keys
        self._admin = None if admin_key is None else _digest(admin_key.get_secret_value())

    @property
    def required(self) -> bool:
        """Whether requests need a key: as soon as there is or was one."""
        return self._admin is not None or self._keys.any

    def identify(self, secret: str | None) -> Principal | None:
        """Who has this secret; None: nobody has it, or not any more."""
        if not self.required:
            return ANYONE
        if secret is None or len(secret) > MAX_SECRET:
            return None
        if self._admin is not None and hmac.compare_digest(_digest(secret), self._admin):
            return Principal(Caller(actor=ADMIN_KEY, operator=True), frozenset(SCOPES))
        key = self._keys.authenticate(secret)
        if key is None:
            return None
        return Principal(Caller(key.tenant, key.id, "operator" in key.scopes), frozenset(key.scopes))


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
