"""The tables of the registry. The migrations beside this file make them; a test compares the two.

`revision` counts the changes of the whole database: each write transaction adds one, and stamps it on the
rows that it changes, so that readers can ask for what is newer than what they have. Rows that are gone are
kept as tombstones for this reason, and so that no version number ever comes back.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()
_MAYBE = JSON(none_as_null=True)
_NAME = String(63)
_DIGEST = String(64)

REVISION = Table(
    "revision",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("value", BigInteger, nullable=False),
    Column("database", String(32), nullable=False),  # random: which database this is
)
TENANTS = Table(
    "tenants",
    METADATA,
    Column("name", _NAME, primary_key=True),
    Column("created", Double, nullable=False),
    Column("quota", JSON, nullable=False),  # the fields of `Quota`
    Column("deleted", Double),
    Column("revision", BigInteger, nullable=False, index=True),
)
KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", _NAME, nullable=False),
    Column("name", Text, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("hash", _DIGEST, nullable=False),  # sha256 of the secret, hex
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    Column("revision", BigInteger, nullable=False, index=True),
)
ADAPTERS = Table(
    "adapters",
    METADATA,
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("next_version", Integer, nullable=False),
)
SHARES = Table(
    "shares",
    METADATA,
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("other", _NAME, primary_key=True),  # the tenant that may use it; `*`: everybody
    Column("created", Double, nullable=False),
    Column("deleted", Double),
    Column("revision", BigInteger, nullable=False, index=True),
    ForeignKeyConstraint(["tenant", "name"], ["adapters.tenant", "adapters.name"]),
)
VERSIONS = Table(
    "versions",
    METADATA,
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", _DIGEST, nullable=False),
    Column("base_digest", _DIGEST, nullable=False),
    Column("created", Double, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("target_modules", JSON, nullable=False),
    Column("source", Text, nullable=False),
    Column("task", _NAME),
    Column("labels", JSON, nullable=False),
    Column("invocation", JSON, nullable=False),
    Column("variant", String(32), nullable=False),
    Column("trained_on_quantization", String(16)),
    Column("unmixable", Text, nullable=False),
    Column("proof_status", String(16), nullable=False),
    Column("proof_reason", Text),
    Column("max_logit_difference", Double),
    Column("kl_from_base", Double),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("desired", String(16), nullable=False),
    Column("lineage", JSON, nullable=False),
    Column("replica", String(32), nullable=False),
    Column("changed", Double, nullable=False),  # when its state was last set
    Column("revision", BigInteger, nullable=False, index=True),
    ForeignKeyConstraint(["tenant", "name"], ["adapters.tenant", "adapters.name"]),
    Index("versions_by_digest", "digest"),
    Index("versions_by_state", "state", "tenant"),
)
ALIASES = Table(
    "aliases",
    METADATA,
    Column("base_digest", _DIGEST, primary_key=True),  # an alias means versions of one base
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("alias", _NAME, primary_key=True),
    Column("targets", JSON, nullable=False),  # [[version, percent], ...]; empty: the alias is removed
    Column("shadow", Integer),
    Column("edition", Integer, nullable=False),  # the alias's own revision
    Column("before", Integer),  # edition that a rollback goes to
    Column("updated", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    ForeignKeyConstraint(["tenant", "name"], ["adapters.tenant", "adapters.name"]),
)
ALIAS_HISTORY = Table(
    "alias_history",
    METADATA,
    Column("base_digest", _DIGEST, primary_key=True),
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("alias", _NAME, primary_key=True),
    Column("edition", Integer, primary_key=True, autoincrement=False),
    Column("targets", JSON, nullable=False),
    Column("shadow", Integer),
    Column("before", Integer),
    Column("updated", Double, nullable=False),
    Column("actor", Text, nullable=False),
)
BLOBS = Table(
    "blobs",  # what is, or may be, in the store that replicas share
    METADATA,
    Column("digest", _DIGEST, primary_key=True),
    Column("touched", Double, nullable=False),  # when a publisher last began to store it
)
AUDIT = Table(
    "audit",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
    Column("tenant", _NAME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("before", _MAYBE),
    Column("after", _MAYBE),
    Index("audit_by_tenant", "tenant", "id"),
)
