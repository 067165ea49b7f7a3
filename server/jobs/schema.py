"""The tables of training files and jobs, in the registry's database.

Its one chain of migrations makes them too (`adapters/registry/migrations`): a server has one database, and a
publication and the job behind it must not come apart. The ground floor only carries them; it knows nothing of
what they are for.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()
_MAYBE = JSON(none_as_null=True)
_ID = String(40)
_NAME = String(63)
_DIGEST = String(64)
_REPLICA = String(32)

FILES = Table(
    "training_files",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("number", BigInteger, nullable=False),  # the revision that made it: newer ones have higher ones
    Column("tenant", _NAME, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", _DIGEST, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("replica", _REPLICA, nullable=False),  # whose disk has it; empty: the store that all share
    Index("training_files_by_tenant", "tenant", "number"),
)
JOBS = Table(
    "training_jobs",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("number", BigInteger, nullable=False),  # as of a file
    Column("tenant", _NAME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("base_digest", _DIGEST, nullable=False),  # only servers of this base can train it
    Column("place", _REPLICA, nullable=False),  # the replica that has its files; empty: all have
    Column("request", JSON, nullable=False),  # the fields of `JobRequest`
    Column("training_file", _ID, nullable=False),
    Column("validation_file", _ID),
    Column("status", String(24), nullable=False),
    Column("created", Double, nullable=False),
    Column("checked", Double),  # when its data was found good
    Column("started", Double),  # when it was claimed first
    Column("finished", Double),
    Column("estimated_finish", Double),
    Column("error", _MAYBE),  # {code, message, param, fault}
    Column("fine_tuned_model", Text),
    Column("trained_tokens", BigInteger),
    Column("result_files", JSON, nullable=False),
    Column("replica", _REPLICA, nullable=False),  # who works on it; empty: nobody
    Column("keeper", _REPLICA, nullable=False),  # whose disk has its newest state; empty: nobody's
    Column("beat", Double, nullable=False),  # when the one that works on it, or keeps it, was last heard of
    Column("attempts", Integer, nullable=False),  # claims since its last checkpoint
    Column("turn", BigInteger, nullable=False),  # the revision that claimed it last
    Column("events", Integer, nullable=False),  # how many there are
    Index("training_jobs_by_tenant", "tenant", "number"),
    Index("training_jobs_by_status", "status", "number"),
)
LABELS = Table(
    "training_job_metadata",
    METADATA,
    Column("job", _ID, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
EVENTS = Table(
    "training_events",
    METADATA,
    Column("job", _ID, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # 1, 2, ...
    Column("created", Double, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", _MAYBE),
)
CHECKPOINTS = Table(
    "training_checkpoints",
    METADATA,
    Column("job", _ID, primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("created", Double, nullable=False),
    Column("model", Text, nullable=False),  # the reference that can be asked
    Column("metrics", JSON, nullable=False),
)
