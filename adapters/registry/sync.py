"""Keeps what is in memory equal to the database, after each change of ours and of other replicas."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread
from typing import Protocol

from sqlalchemy import Connection, select

from adapters.errors import RegistryUnavailable
from adapters.registry.database import Database
from adapters.registry.schema import REVISION

POLL_SECONDS = 0.25
log = logging.getLogger(__name__)


class Follower(Protocol):
    """Has some of the tables in memory."""

    def follow(self, connection: Connection, since: int) -> bool:
        """Take over the rows whose revision is above `since` (0: at start); whether there were any."""


class Sync:
    """Brings followers up to date, one caller at a time, each from one instant of the database.

    Args:
        changed: called, from whichever thread it was, after a follower took something over.
    """

    def __init__(
        self, database: Database, followers: Sequence[Follower], changed: Callable[[], None]
    ) -> None:
        self._database, self._followers, self._changed = database, followers, changed
        self._reading = Lock()
        self._revision = 0
        self._ended = Event()
        self._thread: Thread | None = None
        self._away = False

    def start(self) -> None:
        """Read everything once; then poll, if others may write to the database."""
        self._read()
        if self._database.shared:
            self._thread = Thread(target=self._poll, name="registry-sync", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def catch_up(self) -> None:
        """Read what was changed until now; if the database is away, when it comes back."""
        try:
            changed = self._read()
        except RegistryUnavailable as error:
            if not self._away:
                log.warning("%s; answers go on from what is in memory", error)
            self._away = True
            return
        if self._away:
            log.warning("the registry's database is back")
        self._away = False
        if changed:
            self._changed()

    def _read(self) -> bool:
        with self._reading, self._database.read() as connection:
            revision: int = connection.execute(select(REVISION.c.value)).scalar_one()
            if revision == self._revision:
                return False
            changes = [follower.follow(connection, self._revision) for follower in self._followers]
            self._revision = revision
            return any(changes)

    def _poll(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                self.catch_up()
            except Exception:
                # Whatever is wrong with one row must not end the thread: the others would stay unseen.
                log.exception("the registry's changes could not be read")
