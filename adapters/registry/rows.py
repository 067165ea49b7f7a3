"""Records as rows of the tables, and back; and the few queries that several parts make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from adapters.errors import TenantNotFound
from adapters.registry.database import Write
from adapters.registry.lineage import lineage_object, parse_lineage
from adapters.registry.proof import Proof
from adapters.registry.records import LIVE, AdapterVersion, Alias, Quota, Target
from adapters.registry.schema import TENANTS, VERSIONS

Adapter = tuple[str, str]
"""Tenant and name."""
_LISTS = ("target_modules", "labels", "invocation")
_PROOF = {
    "status": "proof_status",
    "reason": "proof_reason",
    "max_logit_difference": "max_logit_difference",
    "kl_from_base": "kl_from_base",
}
"""Fields of `Proof`, and their columns."""
_DROPPED = ("changed", "revision")
"""Columns that are no fields of the record."""


def version_of(row: RowMapping) -> AdapterVersion:
    fields: dict[str, Any] = {str(name): value for name, value in row.items() if name not in _DROPPED}
    proof = Proof(**{name: fields.pop(column) for name, column in _PROOF.items()})
    fields |= {name: tuple(fields[name]) for name in _LISTS}
    return AdapterVersion(**fields | {"lineage": parse_lineage(fields["lineage"])}, proof=proof)


def alias_of(row: RowMapping | dict[str, Any]) -> Alias:
    return Alias(
        tenant=row["tenant"],
        name=row["name"],
        alias=row["alias"],
        targets=tuple(Target(version, percent) for version, percent in row["targets"]),
        shadow=row["shadow"],
        revision=row["edition"],
        updated=row["updated"],
        actor=row["actor"],
    )


def put_version(write: Write, version: AdapterVersion, is_new: bool) -> None:
    """Insert it, or overwrite the row of its number."""
    row = asdict(version) | {name: list(getattr(version, name)) for name in _LISTS}
    proof = row.pop("proof")
    row |= {column: proof[name] for name, column in _PROOF.items()}
    row |= {"lineage": lineage_object(version.lineage), "changed": write.now, "revision": write.revision}
    if is_new:
        write.connection.execute(insert(VERSIONS).values(row))
        return
    write.connection.execute(update(VERSIONS).where(*_is(version)).values(row))


def find_version(connection: Connection, adapter: Adapter, number: int) -> AdapterVersion | None:
    """Of any state and base."""
    tenant, name = adapter
    columns = VERSIONS.c
    query = select(VERSIONS).where(columns.tenant == tenant, columns.name == name, columns.version == number)
    row = connection.execute(query).mappings().first()
    return None if row is None else version_of(row)


def versions_of(
    connection: Connection, adapter: Adapter, base: str, states: Iterable[str] = LIVE
) -> list[AdapterVersion]:
    """Those for one base, oldest first."""
    tenant, name = adapter
    columns = VERSIONS.c
    query = select(VERSIONS).where(
        columns.tenant == tenant,
        columns.name == name,
        columns.base_digest == base,
        columns.state.in_(tuple(states)),
    )
    rows = connection.execute(query.order_by(columns.version)).mappings().all()
    return [version_of(row) for row in rows]


def quota_of(connection: Connection, tenant: str) -> Quota:
    """Raises `TenantNotFound` if there is no such tenant."""
    query = select(TENANTS.c.quota).where(TENANTS.c.name == tenant, TENANTS.c.deleted.is_(None))
    row = connection.execute(query).first()
    if row is None:
        raise TenantNotFound(f"no tenant {tenant[:100]!r}")
    return Quota(**row.quota)


def _is(version: AdapterVersion) -> tuple[Any, ...]:
    columns = VERSIONS.c
    return (
        columns.tenant == version.tenant,
        columns.name == version.name,
        columns.version == version.version,
    )
