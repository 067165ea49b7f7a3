"""Aliases: what a name means, moved with compare-and-set, with their history."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, insert, select

from adapters.errors import AdapterConflict, AdapterNotFound, InvalidAlias, QuotaExceeded
from adapters.registry.database import Write
from adapters.registry.names import DEFAULT_ALIAS, Ref, check_alias, full_name
from adapters.registry.records import LIVE, Alias, Caller, Target
from adapters.registry.rows import Adapter, alias_of, find_version
from adapters.registry.schema import ALIAS_HISTORY, ALIASES

_MAX_TARGETS = 16
MAX_ALIASES = 100
"""Of one adapter; each is in the memory of every server."""
MAX_HISTORY = 1000
"""Changes of one alias that are shown, the newest of them."""


class Aliases:
    """The aliases of one base's adapters, within the caller's transaction."""

    def __init__(self, base_digest: str) -> None:
        self._base_digest = base_digest

    def of(self, connection: Connection, adapter: Adapter) -> list[Alias]:
        """All that there are, by name."""
        query = select(ALIASES).where(self._are(ALIASES, adapter)).order_by(ALIASES.c.alias)
        found = [alias_of(row) for row in connection.execute(query).mappings()]
        return [alias for alias in found if alias.targets]

    def get(self, connection: Connection, adapter: Adapter, name: str) -> Alias | None:
        return next((alias for alias in self.of(connection, adapter) if alias.alias == name), None)

    def history(self, connection: Connection, adapter: Adapter, name: str) -> list[Alias]:
        """What it meant, newest first and `MAX_HISTORY` at most; without targets: it was removed.

        Raises:
            AdapterNotFound: there never was one.
        """
        query = select(ALIAS_HISTORY).where(self._are(ALIAS_HISTORY, adapter), ALIAS_HISTORY.c.alias == name)
        query = query.order_by(ALIAS_HISTORY.c.edition.desc()).limit(MAX_HISTORY)
        rows = connection.execute(query).mappings().all()
        if not rows:
            raise _no_alias(adapter, name)
        return [alias_of(row) for row in rows]

    def put(
        self,
        write: Write,
        adapter: Adapter,
        name: str,
        targets: tuple[Target, ...],
        caller: Caller,
        *,
        shadow: int | None = None,
        expected: int | None = None,
        action: str = "set_alias",
        before: int | None = None,
    ) -> Alias:
        """Set what an alias means; without targets it is gone, but for its history.

        Args:
            shadow: left out where it is a target itself.
            expected: the alias's revision; 0: there is none.
            before: edition of the history that a rollback of this one goes to; 0: there is none; None: the
                last one that meant something else.

        Raises:
            AdapterConflict: it has another revision.
            InvalidName, InvalidAlias: it can't be called so, or mean this.
            AdapterNotFound: a target is no live version of this base.
            QuotaExceeded: the adapter has `MAX_ALIASES`.
        """
        if targets:
            self._check(write.connection, adapter, name, targets, shadow)
        row = write.connection.execute(select(ALIASES).where(self._is(adapter, name))).mappings().first()
        known = alias_of(row) if row is not None and row["targets"] else None
        _expect(adapter, name, known, expected)
        if targets and known is None and len(self.of(write.connection, adapter)) >= MAX_ALIASES:
            raise QuotaExceeded(
                f"{full_name(*adapter)} has {MAX_ALIASES} aliases, the most there may be; remove some"
            )
        if before is None and row is not None and known is not None:
            # What is only said again, such as a promotion that was sent twice, is nothing to go back to.
            same = set(known.targets) == set(targets) and known.shadow == shadow
            before = (row["before"] or 0) if same else row["edition"]
        tenant, adapter_name = adapter
        values = {
            "base_digest": self._base_digest,
            "tenant": tenant,
            "name": adapter_name,
            "alias": name,
            "targets": [[target.version, target.percent] for target in targets],
            "shadow": shadow,
            "edition": 1 if row is None else row["edition"] + 1,
            "before": before,
            "updated": write.now,
            "actor": caller.actor,
        }
        write.connection.execute(insert(ALIAS_HISTORY).values(values))
        write.connection.execute(delete(ALIASES).where(self._is(adapter, name)))
        write.connection.execute(insert(ALIASES).values(values | {"revision": write.revision}))
        alias = alias_of(values)
        subject = f"{full_name(*adapter)}@{name}"
        write.audit(caller, action, subject, _said(known), _said(alias if targets else None), tenant)
        return alias

    def remove(
        self, write: Write, adapter: Adapter, name: str, caller: Caller, expected: int | None = None
    ) -> None:
        """Raises `AdapterNotFound` if there is none, `AdapterConflict` if it has another revision."""
        if self.get(write.connection, adapter, name) is None:
            _expect(adapter, name, None, expected)
            raise _no_alias(adapter, name)
        self.put(write, adapter, name, (), caller, expected=expected, action="remove_alias")

    def rollback(
        self, write: Write, adapter: Adapter, name: str, caller: Caller, expected: int | None = None
    ) -> Alias:
        """Set what it meant before its last change; done again, what it meant before that.

        Raises:
            AdapterNotFound: there is no such alias.
            AdapterConflict: there is nothing before, or it is deleted, or the alias has another revision.
        """
        row = write.connection.execute(select(ALIASES).where(self._is(adapter, name))).mappings().first()
        if row is None or not row["targets"]:
            raise _no_alias(adapter, name)
        subject = f"{full_name(*adapter)}@{name}"
        if not row["before"]:
            raise AdapterConflict(f"alias {subject!r} has meant nothing else before; there is no way back")
        earlier = select(ALIAS_HISTORY).where(
            self._are(ALIAS_HISTORY, adapter),
            ALIAS_HISTORY.c.alias == name,
            ALIAS_HISTORY.c.edition == row["before"],
        )
        goal = write.connection.execute(earlier).mappings().one()
        alias = alias_of(goal)
        for target in alias.targets:
            version = find_version(write.connection, adapter, target.version)
            if version is None or version.state not in LIVE:
                raise AdapterConflict(
                    f"alias {subject!r} meant version {target.version} before, and that is deleted"
                )
        shadow = alias.shadow
        if shadow is not None:
            shadowed = find_version(write.connection, adapter, shadow)
            shadow = shadow if shadowed is not None and shadowed.state in LIVE else None
        return self.put(
            write,
            adapter,
            name,
            alias.targets,
            caller,
            shadow=shadow,
            expected=expected,
            action="rollback",
            before=goal["before"] or 0,
        )

    def version(self, connection: Connection, adapter: Adapter, ref: Ref) -> int:
        """The one version that a reference means.

        Raises:
            AdapterNotFound: there is no such alias.
            InvalidAlias: the alias means several.
        """
        if ref.version is not None:
            return ref.version
        name = ref.alias or DEFAULT_ALIAS
        alias = self.get(connection, adapter, name)
        if alias is None:
            raise _no_alias(adapter, name)
        if len(alias.targets) > 1:
            raise InvalidAlias(
                f"alias {full_name(*adapter)}@{name} means several versions; name one, such as "
                f"{full_name(*adapter)}@{alias.targets[0].version}"
            )
        return alias.targets[0].version

    def _check(
        self,
        connection: Connection,
        adapter: Adapter,
        name: str,
        targets: tuple[Target, ...],
        shadow: int | None,
    ) -> None:
        if name != DEFAULT_ALIAS:
            check_alias(name)
        if len(targets) > _MAX_TARGETS:
            raise InvalidAlias(
                f"alias {name!r} has {len(targets)} targets; at most {_MAX_TARGETS} are allowed"
            )
        if len({target.version for target in targets}) < len(targets):
            raise InvalidAlias(f"alias {name!r} names a version twice")
        percents = [target.percent for target in targets]
        if min(percents) < 1 or sum(percents) != 100:
            raise InvalidAlias(
                f"alias {name!r} has percents {', '.join(map(str, percents))}; they must be 1 or more, and "
                "100 together"
            )
        wanted = [target.version for target in targets]
        if shadow in wanted:
            raise InvalidAlias(f"alias {name!r} has version {shadow} both as a target and as its shadow")
        for number in [*wanted, *([] if shadow is None else [shadow])]:
            version = find_version(connection, adapter, number)
            if version is None or version.state not in LIVE or version.base_digest != self._base_digest:
                raise AdapterNotFound(f"no adapter '{full_name(*adapter)}@{number}' that an alias could mean")

    def _are(self, table: Table, adapter: Adapter) -> ColumnElement[bool]:
        tenant, name = adapter
        columns = table.c
        return and_(columns.base_digest == self._base_digest, columns.tenant == tenant, columns.name == name)

    def _is(self, adapter: Adapter, alias: str) -> ColumnElement[bool]:
        return and_(self._are(ALIASES, adapter), ALIASES.c.alias == alias)


def with_canary(targets: Sequence[Target], version: int, percent: int) -> tuple[Target, ...]:
    """`version` gets `percent`, and the others share the rest as they shared all of it before.

    Raises:
        InvalidAlias: percent is not 0 to 100, or nothing is left to share the rest.
    """
    if not 0 <= percent <= 100:
        raise InvalidAlias(f"a canary's percent is 0 to 100, not {percent}")
    others = [target for target in targets if target.version != version]
    found = [Target(version, percent)] if percent else []
    if percent < 100:
        if not others:
            raise InvalidAlias(f"version {version} is all that the alias means; there is nothing beside it")
        found += _scaled(others, 100 - percent)
    return tuple(found)


def without(targets: Sequence[Target], version: int) -> tuple[Target, ...]:
    """The others have its share too; none, if there are none."""
    others = [target for target in targets if target.version != version]
    return tuple(_scaled(others, 100)) if others else ()


def _scaled(targets: Sequence[Target], percent: int) -> list[Target]:
    """`percent` shared in the proportions of `targets`; those too small for 1 percent drop out."""
    total = sum(target.percent for target in targets)
    shares = [target.percent * percent // total for target in targets]
    # What rounding left over goes to the largest remainders.
    order = sorted(range(len(targets)), key=lambda i: -(targets[i].percent * percent % total))
    for i in order[: percent - sum(shares)]:
        shares[i] += 1
    return [Target(target.version, share) for target, share in zip(targets, shares, strict=True) if share]


def _expect(adapter: Adapter, name: str, known: Alias | None, expected: int | None) -> None:
    revision = 0 if known is None else known.revision
    if expected is not None and expected != revision:
        raise AdapterConflict(
            f"alias '{full_name(*adapter)}@{name}' is at revision {revision}, not {expected}; look again"
        )


def _said(alias: Alias | None) -> dict[str, object] | None:
    if alias is None:
        return None
    targets = {str(target.version): target.percent for target in alias.targets}
    return {"targets": targets, "shadow": alias.shadow, "revision": alias.revision}


def _no_alias(adapter: Adapter, name: str) -> AdapterNotFound:
    return AdapterNotFound(f"no alias '{full_name(*adapter)}@{name[:63]}'")
