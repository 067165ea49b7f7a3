"""Brings a database to the tables that this release knows."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from adapters.errors import AdapterConflict

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 7_308_604_897_058_988_365
"""Of Postgres' advisory locks: replicas that start together migrate one after the other."""


def migrate(connection: Connection) -> None:
    """Run what is missing, in the transaction of `connection`: all of it or, after a crash, nothing.

    Raises:
        AdapterConflict: a newer release wrote the database.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    current, head = MigrationContext.configure(connection).get_current_revision(), script.get_current_head()
    if current == head:
        return
    if current is not None and current not in {each.revision for each in script.walk_revisions()}:
        raise AdapterConflict(
            f"a newer release wrote the registry's database (its tables are of revision {current[:40]}, this "
            f"release knows {head}); start that release, or give another --database-url or --data-dir"
        )
    command.upgrade(config, "head")
