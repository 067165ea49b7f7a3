"""What is shown of the registry and not asked by each request: tombstones, lineage, the audit log."""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_, select

from adapters.base import BaseSpec
from adapters.errors import AdapterNotFound
from adapters.registry.database import Database
from adapters.registry.names import DEFAULT_TENANT, full_name
from adapters.registry.records import AdapterVersion, AuditEntry, Caller
from adapters.registry.rows import Adapter, find_version, version_of
from adapters.registry.schema import AUDIT, VERSIONS
from adapters.registry.snapshot import Snapshot

_MAX_ANCESTORS = 100


class Inquiry:
    """Reads for one base; from memory where that has it, else from the database."""

    def __init__(self, database: Database, snapshot: Snapshot, base: BaseSpec) -> None:
        self._database, self._snapshot, self._base = database, snapshot, base

    def find(self, text: str, caller: Caller) -> AdapterVersion:
        """Of any state; of a bare name without alias, the newest.

        Raises:
            AdapterNotFound: there never was one on this base, or the caller may not see it.
        """
        ref, adapter, version = self._snapshot.find(text, caller)
        if version is None and ref.alias is None:
            version = self._stored(adapter, ref.version)
        if version is None:
            raise AdapterNotFound(f"no adapter {text[:100]!r}; GET /v1/adapters lists what there is")
        return version

    def history(self, caller: Caller) -> tuple[AdapterVersion, ...]:
        """Every version that there ever was and that the caller may see, by tenant, name and number."""
        columns = VERSIONS.c
        query = select(VERSIONS).where(columns.base_digest == self._base.digest)
        query = query.order_by(columns.tenant, columns.name, columns.version)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings()
            # Before records are made of them: there may be many, and few of them the caller's.
            seen = (row for row in rows if self._snapshot.may_see((row["tenant"], row["name"]), caller))
            return tuple(map(version_of, seen))

    def lineage(self, text: str, caller: Caller) -> tuple[AdapterVersion, ...]:
        """The version, its parent, and so on, as far as they are known and visible."""
        chain = [self.find(text, caller)]
        while len(chain) < _MAX_ANCESTORS:
            parent = self._parent(chain[-1], caller)
            if parent is None or parent in chain:
                break
            chain.append(parent)
        return tuple(chain)

    def audit(self, caller: Caller, after: int, limit: int, subject: str | None) -> tuple[AuditEntry, ...]:
        query = select(AUDIT).where(AUDIT.c.id > after).order_by(AUDIT.c.id).limit(limit)
        if not caller.operator:
            query = query.where(AUDIT.c.tenant == caller.tenant)
        if subject is not None:
            query = query.where(_is_about(subject, caller))
        with self._database.read() as connection:
            return tuple(AuditEntry(**row) for row in connection.execute(query).mappings())

    def _stored(self, adapter: Adapter, number: int | None) -> AdapterVersion | None:
        with self._database.read() as connection:
            if number is None:
                tenant, name = adapter
                columns = VERSIONS.c
                query = select(VERSIONS).where(
                    columns.tenant == tenant,
                    columns.name == name,
                    columns.base_digest == self._base.digest,
                )
                row = connection.execute(query.order_by(columns.version.desc()).limit(1)).mappings().first()
                return None if row is None else version_of(row)
            found = find_version(connection, adapter, number)
        return found if found is not None and found.base_digest == self._base.digest else None

    def _parent(self, version: AdapterVersion, caller: Caller) -> AdapterVersion | None:
        """By its reference if that still is of the same content, else by its digest."""
        named, digest = version.lineage.parent, version.lineage.parent_digest
        if named is not None:
            # A bare name was meant in the publisher's tenant.
            text = named if "/" in named else f"{version.tenant}/{named}"
            try:
                found = self.find(text, caller)
            except AdapterNotFound:
                found = None
            if found is not None and digest in (None, found.digest):
                return found
        if digest is None:
            return None
        visible = (each for each in self._snapshot.all(caller) if each.digest == digest)
        return next(visible, None)


def _is_about(subject: str, caller: Caller) -> ColumnElement[bool]:
    """Whether an entry is about this thing, or a version or an alias of it.

    A name without tenant is also what the caller calls so.
    """
    names = {subject.removeprefix(f"{DEFAULT_TENANT}/")}
    if "/" not in subject:
        names.add(full_name(caller.tenant, subject))
    column = AUDIT.c.subject
    return or_(column.in_(names), *(column.startswith(f"{name}@", autoescape=True) for name in sorted(names)))
