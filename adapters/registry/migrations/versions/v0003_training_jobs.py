"""Training files and jobs, with their events and checkpoints: `server/jobs` keeps them in this database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ID = sa.String(40)
_NAME = sa.String(63)
_DIGEST = sa.String(64)
_REPLICA = sa.String(32)


def upgrade() -> None:
    _files()
    _jobs()
    op.create_table(
        "training_job_metadata",
        sa.Column("job", _ID, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "training_events",
        sa.Column("job", _ID, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON),
    )
    op.create_table(
        "training_checkpoints",
        sa.Column("job", _ID, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )


def _files() -> None:
    op.create_table(
        "training_files",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", _DIGEST, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.Column("replica", _REPLICA, nullable=False),
    )
    op.create_index("training_files_by_tenant", "training_files", ["tenant", "number"])


def _jobs() -> None:
    op.create_table(
        "training_jobs",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("base_digest", _DIGEST, nullable=False),
        sa.Column("place", _REPLICA, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("training_file", _ID, nullable=False),
        sa.Column("validation_file", _ID),
        sa.Column("status", sa.String(24), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("checked", sa.Double),
        sa.Column("started", sa.Double),
        sa.Column("finished", sa.Double),
        sa.Column("estimated_finish", sa.Double),
        sa.Column("error", sa.JSON),
        sa.Column("fine_tuned_model", sa.Text),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("result_files", sa.JSON, nullable=False),
        sa.Column("replica", _REPLICA, nullable=False),
        sa.Column("keeper", _REPLICA, nullable=False),
        sa.Column("beat", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
    )
    op.create_index("training_jobs_by_tenant", "training_jobs", ["tenant", "number"])
    op.create_index("training_jobs_by_status", "training_jobs", ["status", "number"])
