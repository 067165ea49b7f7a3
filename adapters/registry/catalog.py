"""What is published in a data directory, for commands that only look; a server may run on it meanwhile."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from adapters.registry.database import Database, sqlite_url
from adapters.registry.records import LIVE, AdapterVersion
from adapters.registry.rows import version_of
from adapters.registry.schema import VERSIONS


class Catalog:
    """The versions in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._database = Database(sqlite_url(path))

    def close(self) -> None:
        self._database.close()

    def live(self) -> list[AdapterVersion]:
        """Every version that answers, of every base and tenant, by tenant, name and number."""
        columns = VERSIONS.c
        query = select(VERSIONS).where(columns.state.in_(LIVE))
        query = query.order_by(columns.tenant, columns.name, columns.version)
        with self._database.read() as connection:
            return [version_of(row) for row in connection.execute(query).mappings()]
