"""Tenants, keys, aliases, states, shares and the audit log; the versions of `adapter_versions` move over.

Where earlier releases wrote the file, a view takes that table's place which they can't work with: they would
find no adapters in an empty one, and remove the files of all.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NAME = sa.String(63)
_DIGEST = sa.String(64)
_ADAPTER = (["tenant", "name"], ["adapters.tenant", "adapters.name"])


def upgrade() -> None:
    _tables()
    _more_tables()
    _append_only()
    _fill(op.get_bind())
    op.drop_table("adapter_versions")
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE VIEW adapter_versions AS SELECT 'written by a newer release' AS note")


def _tables() -> None:
    op.create_table(
        "revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.Column("database", sa.String(32), nullable=False),
    )
    op.create_table(
        "tenants",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("quota", sa.JSON, nullable=False),
        sa.Column("deleted", sa.Double),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("hash", _DIGEST, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.Column("revoked", sa.Double),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "adapters",
        sa.Column("tenant", _NAME, primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("next_version", sa.Integer, nullable=False),
    )
    op.create_table(
        "shares",
        sa.Column("tenant", _NAME, primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("other", _NAME, primary_key=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("deleted", sa.Double),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
        sa.ForeignKeyConstraint(*_ADAPTER),
    )
    op.create_table(
        "versions",
        sa.Column("tenant", _NAME, primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("base_digest", _DIGEST, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("target_modules", sa.JSON, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("task", _NAME),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("invocation", sa.JSON, nullable=False),
        sa.Column("variant", sa.String(32), nullable=False),
        sa.Column("trained_on_quantization", sa.String(16)),
        sa.Column("unmixable", sa.Text, nullable=False),
        sa.Column("proof_status", sa.String(16), nullable=False),
        sa.Column("proof_reason", sa.Text),
        sa.Column("max_logit_difference", sa.Double),
        sa.Column("kl_from_base", sa.Double),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("desired", sa.String(16), nullable=False),
        sa.Column("lineage", sa.JSON, nullable=False),
        sa.Column("replica", sa.String(32), nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
        sa.ForeignKeyConstraint(*_ADAPTER),
    )
    op.create_index("versions_by_digest", "versions", ["digest"])
    op.create_index("versions_by_state", "versions", ["state", "tenant"])


def _more_tables() -> None:
    op.create_table(
        "aliases",
        sa.Column("base_digest", _DIGEST, primary_key=True),
        sa.Column("tenant", _NAME, primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("alias", _NAME, primary_key=True),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("shadow", sa.Integer),
        sa.Column("edition", sa.Integer, nullable=False),
        sa.Column("before", sa.Integer),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False, index=True),
        sa.ForeignKeyConstraint(*_ADAPTER),
    )
    op.create_table(
        "alias_history",
        sa.Column("base_digest", _DIGEST, primary_key=True),
        sa.Column("tenant", _NAME, primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("alias", _NAME, primary_key=True),
        sa.Column("edition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("shadow", sa.Integer),
        sa.Column("before", sa.Integer),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("touched", sa.Double, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
    )
    op.create_index("audit_by_tenant", "audit", ["tenant", "id"])


def _append_only() -> None:
    """The database itself refuses to change what the audit log says."""
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
    )


def _fill(bind: sa.Connection) -> None:
    meta = sa.MetaData()
    tables = ("adapter_versions", "revision", "tenants", "adapters", "versions", "aliases", "alias_history")
    meta.reflect(bind, only=tables)
    old, tables_of = meta.tables["adapter_versions"], meta.tables
    now = time.time()
    bind.execute(tables_of["revision"].insert().values(id=1, value=1, database=uuid.uuid4().hex))
    bind.execute(tables_of["tenants"].insert().values(name="default", created=now, quota={}, revision=1))
    rows = bind.execute(old.select().order_by(old.c.name, old.c.version)).mappings().all()
    highest: dict[str, int] = {}
    newest: dict[tuple[str, str], int] = {}
    for row in rows:
        highest[row["name"]] = row["version"]
        if row["deleted"] is None:
            newest[row["base_digest"], row["name"]] = row["version"]
    if not rows:
        return
    names = [{"tenant": "default", "name": name, "next_version": n + 1} for name, n in highest.items()]
    bind.execute(tables_of["adapters"].insert(), names)
    bind.execute(tables_of["versions"].insert(), [_version(dict(row)) for row in rows])
    for (base, name), version in newest.items():
        alias = {
            "base_digest": base,
            "tenant": "default",
            "name": name,
            "alias": "default",
            "targets": [[version, 100]],
            "edition": 1,
            "updated": now,
            "actor": "migration",
        }
        bind.execute(tables_of["alias_history"].insert().values(alias))
        bind.execute(tables_of["aliases"].insert().values(alias | {"revision": 1}))


def _version(row: dict[str, Any]) -> dict[str, Any]:
    deleted = row.pop("deleted")
    return row | {
        "tenant": "default",
        "labels": row["labels"] or [],
        "invocation": row["invocation"] or [],
        "variant": row["variant"] or "lora",
        "unmixable": row["unmixable"] or "",
        "proof_status": row["proof_status"] or "off",
        "state": "ready" if deleted is None else "deleted",
        "reason": "",
        "desired": "",
        "lineage": {},
        "replica": "",
        "changed": deleted or row["created"],
        "revision": 1,
    }
