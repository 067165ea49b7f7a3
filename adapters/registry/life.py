"""The life of a version after it was published: deprecated, kept in memory, shared, deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection, delete, func, insert, select, update

from adapters.base import BaseSpec
from adapters.errors import AdapterConflict, AdapterNotFound, InvalidName, QuotaExceeded
from adapters.registry.aliases import Aliases, without
from adapters.registry.database import Database, Write
from adapters.registry.names import DEFAULT_ALIAS, Ref, check_tenant, full_name
from adapters.registry.publisher import COUNTED, clean
from adapters.registry.records import LIVE, AdapterVersion, Alias, Caller, Desired, State, Target
from adapters.registry.rows import Adapter, find_version, put_version, versions_of
from adapters.registry.schema import SHARES, VERSIONS
from adapters.registry.snapshot import EVERYBODY, Snapshot

MAX_SHARES = 1000
"""Of one adapter; each is in the memory of every server."""


class Life:
    """Changes of what is published, for one base; `Registry` has what they raise.

    Args:
        catch_up: called after each change.
    """

    def __init__(
        self,
        database: Database,
        snapshot: Snapshot,
        aliases: Aliases,
        base: BaseSpec,
        catch_up: Callable[[], None],
    ) -> None:
        self._database, self._snapshot, self._aliases = database, snapshot, aliases
        self._base, self._catch_up = base, catch_up

    def deprecate(self, text: str, reason: str | None, caller: Caller) -> AdapterVersion:
        """None takes it back."""
        ref, adapter = self._snapshot.owned(text, caller)
        with self._database.write() as write:
            known = self._live(write.connection, adapter, ref)
            state: State = "ready" if reason is None else "deprecated"
            version = replace(known, state=state, reason=clean(reason or ""))
            if version != known:
                put_version(write, version, is_new=False)
                action = "restore" if reason is None else "deprecate"
                write.audit(caller, action, version.ref, _state(known), _state(version), version.tenant)
        self._catch_up()
        return version

    def want(self, text: str, desired: Desired, caller: Caller) -> AdapterVersion:
        ref, adapter = self._snapshot.owned(text, caller)
        with self._database.write() as write:
            known = self._live(write.connection, adapter, ref)
            version = replace(known, desired=desired)
            if version != known:
                put_version(write, version, is_new=False)
                before: dict[str, object] = {"desired": known.desired}
                after: dict[str, object] = {"desired": desired}
                write.audit(caller, "want", version.ref, before, after, version.tenant)
        self._catch_up()
        return version

    def delete(self, text: str, caller: Caller, force: bool) -> tuple[AdapterVersion, ...]:
        """One version, or all of a name; see `Registry.delete`."""
        ref, adapter = self._snapshot.owned(text, caller)
        with self._database.write() as write:
            aliases = self._aliases.of(write.connection, adapter)
            if ref.version is None and ref.alias is None:
                doomed = versions_of(write.connection, adapter, self._base.digest, COUNTED)
                if not doomed:
                    raise _gone(adapter, "")
                if not force:
                    _refuse(adapter, full_name(*adapter), [a for a in aliases if a.alias != DEFAULT_ALIAS])
            else:
                doomed = [self._any(write.connection, adapter, ref)]
                if not force:
                    _refuse(adapter, doomed[0].ref, [a for a in aliases if _means(a, doomed[0])])
            for version in doomed:
                gone = replace(version, state="deleted", desired="")
                put_version(write, gone, is_new=False)
                write.audit(caller, "delete", version.ref, _state(version), _state(gone), version.tenant)
            for alias in aliases:
                self._leave(write, adapter, alias, doomed, caller)
            self._end_shares(write, adapter)
        self._catch_up()
        return tuple(doomed)

    def share(self, name: str, other: str, caller: Caller, shared: bool) -> None:
        """With a tenant, or `*`: everybody; or not any more."""
        adapter = self._snapshot.owned_adapter(name, caller)
        self._share(adapter, other, caller, shared)
        self._catch_up()

    def _share(self, adapter: Adapter, other: str, caller: Caller, shared: bool) -> None:
        if other != EVERYBODY:
            check_tenant(other)
        if other == adapter[0]:
            raise InvalidName(f"{full_name(*adapter)} belongs to tenant {other!r} already")
        tenant, name = adapter
        where = SHARES.c.tenant == tenant, SHARES.c.name == name, SHARES.c.other == other
        with self._database.write() as write:
            if shared and not versions_of(write.connection, adapter, self._base.digest, COUNTED):
                raise _gone(adapter, "")
            known = write.connection.execute(select(SHARES.c.deleted).where(*where)).first()
            if (known is not None and known.deleted is None) == shared:
                return
            if shared:
                _check_shares(write.connection, adapter)
            row = {
                "tenant": tenant,
                "name": name,
                "other": other,
                "created": write.now,
                "deleted": None if shared else write.now,
                "revision": write.revision,
            }
            write.connection.execute(delete(SHARES).where(*where))
            write.connection.execute(insert(SHARES).values(row))
            said: dict[str, object] = {"tenant": other}
            action, before, after = ("share", None, said) if shared else ("unshare", said, None)
            write.audit(caller, action, full_name(*adapter), before, after, tenant)

    def _live(self, connection: Connection, adapter: Adapter, ref: Ref) -> AdapterVersion:
        version = self._any(connection, adapter, ref)
        if version.state not in LIVE:
            raise _gone(adapter, f"@{version.version}")
        return version

    def _any(self, connection: Connection, adapter: Adapter, ref: Ref) -> AdapterVersion:
        """Of this base, and not deleted."""
        number = self._aliases.version(connection, adapter, ref)
        version = find_version(connection, adapter, number)
        if version is None or version.state == "deleted" or version.base_digest != self._base.digest:
            raise _gone(adapter, f"@{number}")
        return version

    def _leave(
        self, write: Write, adapter: Adapter, alias: Alias, doomed: list[AdapterVersion], caller: Caller
    ) -> None:
        """Take what is deleted out of an alias; `default` falls back on the newest version that is left."""
        numbers = {version.version for version in doomed}
        targets, shadow = alias.targets, None if alias.shadow in numbers else alias.shadow
        for number in numbers:
            targets = without(targets, number)
        if targets == alias.targets and shadow == alias.shadow:
            return
        if not targets and alias.alias == DEFAULT_ALIAS:
            left = versions_of(write.connection, adapter, self._base.digest)
            targets = (Target(left[-1].version),) if left else ()
        shadow = None if not targets or shadow in {target.version for target in targets} else shadow
        action = "set_alias" if targets else "remove_alias"
        self._aliases.put(write, adapter, alias.alias, targets, caller, shadow=shadow, action=action)

    def _end_shares(self, write: Write, adapter: Adapter) -> None:
        """Who uses the name of a deleted adapter again does not share it with those of before."""
        tenant, name = adapter
        columns = VERSIONS.c
        query = select(columns.version).where(
            columns.tenant == tenant, columns.name == name, columns.state.in_(COUNTED)
        )
        if write.connection.execute(query.limit(1)).first() is None:
            where = SHARES.c.tenant == tenant, SHARES.c.name == name, SHARES.c.deleted.is_(None)
            gone = {"deleted": write.now, "revision": write.revision}
            write.connection.execute(update(SHARES).where(*where).values(gone))


def _check_shares(connection: Connection, adapter: Adapter) -> None:
    tenant, name = adapter
    where = SHARES.c.tenant == tenant, SHARES.c.name == name, SHARES.c.deleted.is_(None)
    query = select(func.count()).select_from(SHARES).where(*where)
    if connection.execute(query).scalar_one() >= MAX_SHARES:
        raise QuotaExceeded(
            f"{full_name(*adapter)} is shared with {MAX_SHARES} tenants, the most there may be; "
            "share it with '*', or end some"
        )


def _refuse(adapter: Adapter, what: str, aliases: list[Alias]) -> None:
    if aliases:
        named = ", ".join(repr(f"{full_name(*adapter)}@{alias.alias}") for alias in aliases)
        raise AdapterConflict(
            f"{what} can't be deleted while alias {named} means it; move that first, or force"
        )


def _means(alias: Alias, version: AdapterVersion) -> bool:
    return version.version in {target.version for target in alias.targets} | {alias.shadow}


def _state(version: AdapterVersion) -> dict[str, object]:
    return {"state": version.state, "reason": version.reason}


def _gone(adapter: Adapter, selector: str) -> AdapterNotFound:
    text = f"{full_name(*adapter)}{selector}"
    return AdapterNotFound(f"no adapter {text!r}; GET /v1/models lists what there is")
