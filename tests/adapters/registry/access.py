"""Tenants and keys as each replica of a server has them, on a database that replicas share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select

from adapters.registry.database import Database
from adapters.registry.keys import Keys
from adapters.registry.records import AuditEntry, Caller
from adapters.registry.schema import AUDIT
from adapters.registry.sync import Sync
from adapters.registry.tenants import Tenants

ADMIN = Caller("acme", "key-ad0000000000")
OTHER = Caller("other", "key-070000000000")


class Replica:
    """One process's view; `now` is the time by which keys expire."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.offset = 0.0
        self.tenants = Tenants(self.database, self.catch_up)
        self.keys = Keys(self.database, self.catch_up, lambda: time.time() + self.offset)
        self.sync = Sync(self.database, (self.tenants, self.keys), lambda: None)
        self.sync.start()

    def catch_up(self) -> None:
        self.sync.catch_up()

    def audit(self) -> list[AuditEntry]:
        with self.database.read() as connection:
            rows = connection.execute(select(AUDIT).order_by(AUDIT.c.id)).mappings()
            return [AuditEntry(**row) for row in rows]

    def close(self) -> None:
        self.sync.stop()
        self.database.close()


def migrated(url: str) -> None:
    """Make the tables; takes longer than most tests."""
    Database(url).close()


@contextmanager
def replica(url: str) -> Iterator[Replica]:
    """A replica for the block."""
    running = Replica(url)
    try:
        yield running
    finally:
        running.close()
