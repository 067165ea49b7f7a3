"""The table of adapter versions: what was published, in SQL.

A row is never changed but for its `deleted` time, and never removed, so that no version number comes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)

from adapters.registry.proof import NO_PROOF, Proof
from adapters.registry.records import AdapterVersion

_METADATA = MetaData()
_VERSIONS = Table(
    "adapter_versions",
    _METADATA,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("target_modules", JSON, nullable=False),
    Column("source", Text, nullable=False),
    Column("deleted", Float),
    Column("task", String(63)),
    Column("labels", JSON),
    Column("invocation", JSON),
    Column("variant", String(32)),
    Column("unmixable", Text),
    Column("trained_on_quantization", String(16)),
    Column("proof_status", String(16)),
    Column("proof_reason", Text),
    Column("max_logit_difference", Float),
    Column("kl_from_base", Float),
)


_LISTS = ("target_modules", "labels", "invocation")
_PROOF = {
    "status": "proof_status",
    "reason": "proof_reason",
    "max_logit_difference": "max_logit_difference",
    "kl_from_base": "kl_from_base",
}
"""Fields of `Proof`, and their columns."""
_VARIANT = "lora"  # of rows that were written before there were others


class Catalog:
    """The versions in one SQLite file. What a method has written survives a crash once it returns."""

    def __init__(self, path: Path) -> None:
        self._engine = _connect(path)
        _METADATA.create_all(self._engine)
        _add_columns(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    def live(self) -> list[AdapterVersion]:
        """Every version that is not deleted, of every base, by name and version."""
        query = select(_VERSIONS).where(_VERSIONS.c.deleted.is_(None))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_VERSIONS.c.name, _VERSIONS.c.version)).mappings().all()
        return [_from_row(dict(row)) for row in rows]

    def next_version(self, name: str) -> int:
        """One more than the highest number that `name` ever had, deleted ones and other bases' included."""
        query = select(func.max(_VERSIONS.c.version)).where(_VERSIONS.c.name == name)
        with self._engine.connect() as connection:
            return (connection.execute(query).scalar() or 0) + 1

    def add(self, version: AdapterVersion) -> None:
        row = asdict(version) | {name: list(getattr(version, name)) for name in _LISTS}
        proof = row.pop("proof")
        row |= {column: proof[name] for name, column in _PROOF.items()}
        row = {name: value for name, value in row.items() if name in _VERSIONS.columns}
        with self._engine.begin() as connection:
            connection.execute(insert(_VERSIONS).values(row))

    def delete(self, versions: Iterable[AdapterVersion]) -> None:
        """Mark as deleted, all or none of them."""
        now = time.time()
        with self._engine.begin() as connection:
            for version in versions:
                connection.execute(
                    update(_VERSIONS)
                    .where(_VERSIONS.c.name == version.name, _VERSIONS.c.version == version.version)
                    .values(deleted=now)
                )


def _connect(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: object) -> None:
        # In WAL mode only FULL waits for the disk at each commit.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def _add_columns(engine: Engine) -> None:
    """A file that an older release wrote gets what it lacks, empty in all its rows."""
    known = {column["name"] for column in inspect(engine).get_columns(_VERSIONS.name)}
    with engine.begin() as connection:
        for column in _VERSIONS.columns:
            if column.name not in known:
                kind = column.type.compile(engine.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {_VERSIONS.name} ADD COLUMN {column.name} {kind}")


def _from_row(row: dict[str, Any]) -> AdapterVersion:
    row.pop("deleted")
    lists = {name: tuple(row[name] or ()) for name in _LISTS}
    words = {"variant": row["variant"] or _VARIANT, "unmixable": row["unmixable"] or ""}
    proof = {name: row.pop(column) for name, column in _PROOF.items()}
    proof["status"] = proof["status"] or NO_PROOF.status
    return AdapterVersion(**row | lists | words, proof=Proof(**proof))
