"""Tenants and their quotas. The default tenant always exists; it is the one of a server without keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from sqlalchemy import Connection, RowMapping, insert, or_, select, update

from adapters.errors import AdapterConflict, InvalidName, TenantNotFound
from adapters.registry.database import Database, Write
from adapters.registry.names import DEFAULT_TENANT, check_tenant
from adapters.registry.records import LOCAL, Caller, Quota, Tenant
from adapters.registry.schema import KEYS, SHARES, TENANTS, VERSIONS

_DEFAULT = Tenant(DEFAULT_TENANT, 0.0)
_NO_QUOTA = Quota()


class Tenants:
    """The tenants of a database, in memory, kept equal to it by `Sync`.

    Args:
        catch_up: called after each change of ours; it has `follow` called.

    Attributes:
        closing: called while a tenant is removed, for what others keep of it: each forgets that, or raises
            `AdapterConflict` as it must be deleted first.
    """

    def __init__(self, database: Database, catch_up: Callable[[], None]) -> None:
        self._database, self._catch_up = database, catch_up
        self._live: dict[str, Tenant] = {DEFAULT_TENANT: _DEFAULT}
        self.closing: list[Callable[[Write, str], None]] = []

    def follow(self, connection: Connection, since: int) -> bool:
        """See `Follower`."""
        rows = connection.execute(select(TENANTS).where(TENANTS.c.revision > since)).mappings().all()
        live = dict(self._live)
        for row in rows:
            if row["deleted"] is None:
                live[row["name"]] = _from_row(row)
            else:
                live.pop(row["name"], None)
        self._live = live
        return bool(rows)

    def list(self) -> tuple[Tenant, ...]:
        """All of them, by name."""
        return tuple(tenant for _, tenant in sorted(self._live.items()))

    def get(self, name: str) -> Tenant:
        """One of them.

        Raises:
            TenantNotFound: there is none of this name.
        """
        try:
            return self._live[name]
        except KeyError:
            raise TenantNotFound(f"no tenant {name[:100]!r}") from None

    def quota(self, name: str) -> Quota:
        """What `name` may have; of one that is not there, any amount of nothing."""
        tenant = self._live.get(name)
        return _NO_QUOTA if tenant is None else tenant.quota

    def put(self, name: str, quota: Quota | None = None, caller: Caller = LOCAL) -> Tenant:
        """Make a tenant, or give one another quota. It holds for what comes; what is there stays.

        Raises:
            InvalidName: a tenant can't be called so.
        """
        quota = quota or Quota()
        check_tenant(name)
        with self._database.write() as write:
            before = _row(write.connection, name)
            known = before is not None and before["deleted"] is None
            created = before["created"] if before is not None and known else write.now
            tenant = Tenant(name, created, quota)
            values = {"quota": asdict(quota), "created": created, "deleted": None, "revision": write.revision}
            if before is None:
                write.connection.execute(insert(TENANTS).values(name=name, **values))
            else:
                write.connection.execute(update(TENANTS).where(TENANTS.c.name == name).values(**values))
            old = dict(before["quota"]) if before is not None and known else None
            write.audit(caller, "tenant.put", name, old, asdict(quota), name)
        self._catch_up()
        return tenant

    def remove(self, name: str, caller: Caller = LOCAL) -> Tenant:
        """Remove a tenant: its keys are revoked, and what was shared with it is not any more.

        Raises:
            TenantNotFound: there is none of this name.
            AdapterConflict: it is the default one, or it still has adapters or what `closing` minds.
        """
        if name == DEFAULT_TENANT:
            raise AdapterConflict("the tenant 'default' can't be removed")
        with self._database.write() as write:
            row = live_tenant(write.connection, name)
            if row is None:
                raise TenantNotFound(f"no tenant {name[:100]!r}")
            _check_empty(write.connection, name)
            for forget in self.closing:
                forget(write, name)
            _close(write, name)
            write.audit(caller, "tenant.remove", name, dict(row["quota"]), None, name)
        self._catch_up()
        return _from_row(row)


def _close(write: Write, name: str) -> None:
    """Mark the tenant, its keys and all shares with it or by it as gone: its name may be used again."""
    gone = {"deleted": write.now, "revision": write.revision}
    execute = write.connection.execute
    execute(update(TENANTS).where(TENANTS.c.name == name).values(**gone))
    shares = or_(SHARES.c.other == name, SHARES.c.tenant == name)
    execute(update(SHARES).where(shares, SHARES.c.deleted.is_(None)).values(**gone))
    keys = update(KEYS).where(KEYS.c.tenant == name, KEYS.c.revoked.is_(None))
    execute(keys.values(revoked=write.now, revision=write.revision))


def _check_empty(connection: Connection, name: str) -> None:
    over = VERSIONS.c.state.in_(("refused", "deleted"))
    query = select(VERSIONS.c.name).where(VERSIONS.c.tenant == name, ~over).order_by(VERSIONS.c.name)
    left = connection.execute(query).scalars().first()
    if left is not None:
        raise AdapterConflict(f"tenant {name!r} still has adapters, such as {left!r}; delete them first")


def live_tenant(connection: Connection, name: str) -> RowMapping | None:
    """The row of a tenant other than the default one; None: there is none of this name."""
    try:
        check_tenant(name)
    except InvalidName:
        return None
    row = _row(connection, name)
    return None if row is None or row["deleted"] is not None else row


def _row(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(TENANTS).where(TENANTS.c.name == name)).mappings().first()


def _from_row(row: RowMapping) -> Tenant:
    return Tenant(row["name"], row["created"], replace(_NO_QUOTA, **row["quota"]))
