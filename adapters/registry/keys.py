"""API keys: each opens some kinds of routes to one tenant. Only a hash of the secret is ever stored.

A secret is `ml-`, the id's hex digits, `-`, and 43 random characters, so that a scanner finds a leaked one
and its id says which key to revoke. The random part has 256 bits: a plain SHA-256 of it can't be searched.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select, tuple_, update

from adapters.errors import AdapterForbidden, KeyNotFound, QuotaExceeded, TenantNotFound
from adapters.registry.database import Database
from adapters.registry.names import DEFAULT_TENANT
from adapters.registry.records import LOCAL, SCOPES, Caller, Key, Scope
from adapters.registry.schema import KEYS
from adapters.registry.tenants import live_tenant

MAX_KEYS = 1000
"""Keys of one tenant that are neither revoked nor expired; each is in the memory of every server."""
MAX_PAGE = 1000
_ID = re.compile(r"key-[0-9a-f]{12}")
_SECRET = re.compile(r"ml-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_NOBODY = sha256(secrets.token_bytes(32)).hexdigest()
_ACROSS: frozenset[Scope] = frozenset({"metrics", "operator"})
"""Scopes that show something of every tenant."""


@dataclass(frozen=True, slots=True)
class _Stored:
    key: Key
    hash: str


class Keys:
    """The keys of a database; those that are valid in memory, kept equal to the database by `Sync`.

    Args:
        catch_up: called after each change of ours; it has `follow` called.
        clock: Unix time in seconds.
    """

    def __init__(
        self, database: Database, catch_up: Callable[[], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._catch_up, self._clock = database, catch_up, clock
        self._live: dict[str, _Stored] = {}
        self._any = False

    @property
    def any(self) -> bool:
        """Whether there is a key or ever was one: to revoke the last one must not open the doors."""
        return self._any

    def follow(self, connection: Connection, since: int) -> bool:
        """See `Follower`."""
        rows = connection.execute(select(KEYS).where(KEYS.c.revision > since)).mappings().all()
        live = dict(self._live)
        for row in rows:
            if row["revoked"] is None:
                live[row["id"]] = _Stored(_from_row(row), row["hash"])
            else:
                live.pop(row["id"], None)
        if rows:
            # Expired ones too: a tenant may make any number of short-lived keys, one after another.
            self._live = {id: stored for id, stored in live.items() if not self._expired(stored.key)}
        self._any = self._any or bool(rows)
        return bool(rows)

    def authenticate(self, secret: str) -> Key | None:
        """The valid key with this secret; never waits for the database.

        What is unknown takes the same way as what is known, and the comparison the same time.
        """
        match = _SECRET.fullmatch(secret)
        stored = self._live.get(f"key-{match[1]}") if match else None
        same = hmac.compare_digest(_hash(secret), _NOBODY if stored is None else stored.hash)
        if stored is None or not same or self._expired(stored.key):
            return None
        return stored.key

    def create(
        self,
        tenant: str,
        name: str,
        scopes: Iterable[Scope],
        expires: float | None = None,
        caller: Caller = LOCAL,
    ) -> tuple[Key, str]:
        """A new key and its secret, which nobody can ask for again.

        Args:
            name: for people.
            expires: Unix time in seconds; None: never.

        Raises:
            TenantNotFound: there is no such tenant, or it is not the caller's own.
            AdapterForbidden: only an operator may give one of these scopes.
            QuotaExceeded: the tenant has `MAX_KEYS`.
        """
        wanted = tuple(scope for scope in SCOPES if scope in set(scopes))
        if tenant != caller.tenant and not caller.operator:
            raise TenantNotFound(f"no tenant {tenant[:100]!r}")
        if (high := _ACROSS & set(wanted)) and not caller.operator:
            raise AdapterForbidden(f"only an operator may give the scope {min(high)!r}")
        digits = secrets.token_hex(6)
        secret = f"ml-{digits}-{secrets.token_urlsafe(32)}"
        with self._database.write() as write:
            if tenant != DEFAULT_TENANT and live_tenant(write.connection, tenant) is None:
                raise TenantNotFound(f"no tenant {tenant[:100]!r}")
            self._check_count(write.connection, tenant)
            key = Key(f"key-{digits}", tenant, name, wanted, write.now, expires)
            write.connection.execute(
                insert(KEYS).values(
                    id=key.id,
                    tenant=tenant,
                    name=name,
                    scopes=list(wanted),
                    hash=_hash(secret),
                    created=key.created,
                    expires=expires,
                    revoked=None,
                    revision=write.revision,
                )
            )
            write.audit(caller, "key.create", key.id, None, _shown(key), tenant)
        self._catch_up()
        return key, secret

    def get(self, key_id: str, caller: Caller = LOCAL) -> Key:
        """One key, valid or not.

        Raises:
            KeyNotFound: there is none with this id, or it is another tenant's.
        """
        with self._database.read() as connection:
            return _find(connection, key_id, caller)

    def list(
        self,
        tenant: str | None = None,
        *,
        after: str | None = None,
        limit: int = MAX_PAGE,
        caller: Caller = LOCAL,
    ) -> tuple[Key, ...]:
        """Keys of `tenant` (None: of all), oldest first, those that are not valid any more included.

        Args:
            after: the id of the last one that was seen.

        Raises:
            KeyNotFound: there is no key `after` that the caller may see.
        """
        place = (KEYS.c.created, KEYS.c.id)
        query = select(KEYS).order_by(*place).limit(limit)
        if tenant is not None:
            query = query.where(KEYS.c.tenant == tenant)
        with self._database.read() as connection:
            if after is not None:
                last = _find(connection, after, caller)
                query = query.where(tuple_(*place) > tuple_(last.created, last.id))
            return tuple(map(_from_row, connection.execute(query).mappings()))

    def revoke(self, key_id: str, caller: Caller = LOCAL) -> Key:
        """End a key: here at once, on other replicas when they next look. To do it twice changes nothing.

        Raises:
            KeyNotFound: as `get`.
        """
        with self._database.write() as write:
            key = _find(write.connection, key_id, caller)
            if key.revoked is None:
                change = update(KEYS).where(KEYS.c.id == key_id)
                write.connection.execute(change.values(revoked=write.now, revision=write.revision))
                write.audit(caller, "key.revoke", key_id, _shown(key), None, key.tenant)
                key = _find(write.connection, key_id, caller)
        self._catch_up()
        return key

    def _expired(self, key: Key) -> bool:
        return key.expires is not None and self._clock() >= key.expires

    def _check_count(self, connection: Connection, tenant: str) -> None:
        valid = KEYS.c.revoked.is_(None) & (KEYS.c.expires.is_(None) | (KEYS.c.expires > self._clock()))
        query = select(func.count()).select_from(KEYS).where((KEYS.c.tenant == tenant) & valid)
        if connection.execute(query).scalar_one() >= MAX_KEYS:
            raise QuotaExceeded(f"tenant {tenant!r} has {MAX_KEYS} keys, the most there may be; revoke some")


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _find(connection: Connection, key_id: str, caller: Caller) -> Key:
    row = None
    if _ID.fullmatch(key_id):  # others may hold what a database takes for no text at all
        row = connection.execute(select(KEYS).where(KEYS.c.id == key_id)).mappings().first()
    if row is None or (row["tenant"] != caller.tenant and not caller.operator):
        raise KeyNotFound(f"no key {key_id[:100]!r}")
    return _from_row(row)


def _from_row(row: RowMapping) -> Key:
    fields: dict[str, Any] = {name: row[name] for name in Key.__slots__}
    return Key(**fields | {"scopes": tuple(row["scopes"])})


def _shown(key: Key) -> dict[str, object]:
    return {"name": key.name, "scopes": list(key.scopes), "expires": key.expires}
