"""The table of the releases before there were tenants, which they made and widened without Alembic."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_FIRST = (
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("base_digest", sa.String(64), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("parameters", sa.BigInteger, nullable=False),
    sa.Column("target_modules", sa.JSON, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("deleted", sa.Float),
)
_LATER = (
    sa.Column("task", sa.String(63)),
    sa.Column("labels", sa.JSON),
    sa.Column("invocation", sa.JSON),
    sa.Column("variant", sa.String(32)),
    sa.Column("unmixable", sa.Text),
    sa.Column("trained_on_quantization", sa.String(16)),
    sa.Column("proof_status", sa.String(16)),
    sa.Column("proof_reason", sa.Text),
    sa.Column("max_logit_difference", sa.Float),
    sa.Column("kl_from_base", sa.Float),
)


def upgrade() -> None:
    """A file that one of those releases wrote gets the columns that it lacks."""
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table("adapter_versions"):
        op.create_table("adapter_versions", *(column.copy() for column in (*_FIRST, *_LATER)))
        return
    known = {column["name"] for column in inspector.get_columns("adapter_versions")}
    for column in _LATER:
        if column.name not in known:
            op.add_column("adapter_versions", column.copy())
