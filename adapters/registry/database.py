"""One database of the registry: SQLite in the data directory, or Postgres for several replicas.

Writers are serial, across replicas too: a write transaction begins by counting up the one row of `revision`,
whose lock it keeps to its end. So rows become visible in the order of their revisions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, make_url, select, update
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from adapters.errors import AdapterConflict, AdapterError, RegistryUnavailable
from adapters.registry.migrate import migrate
from adapters.registry.records import Caller
from adapters.registry.schema import AUDIT, REVISION

_BUSY_SECONDS = 30
"""How long a writer waits for another one."""
_CONNECT_SECONDS = 5


@dataclass(slots=True)
class Write:
    """One write transaction.

    Attributes:
        revision: to be stamped on each row that it changes.
        now: Unix time in seconds.
    """

    connection: Connection
    revision: int
    now: float
    _entries: int | None = field(default=None, repr=False)

    def audit(
        self,
        caller: Caller,
        action: str,
        subject: str,
        before: dict[str, object] | None = None,
        after: dict[str, object] | None = None,
        tenant: str | None = None,
    ) -> None:
        """Note a change; `tenant`: whom it concerns, if not the caller's own."""
        if self._entries is None:
            self._entries = self.connection.execute(select(func.max(AUDIT.c.id))).scalar() or 0
        self._entries += 1
        self.connection.execute(
            insert(AUDIT).values(
                id=self._entries,
                time=self.now,
                tenant=tenant or caller.tenant,
                actor=caller.actor,
                action=action,
                subject=subject,
                before=before,
                after=after,
            )
        )


class Database:
    """The tables of `schema.py`, in the form that this release knows.

    Args:
        url: `postgresql://...` or `sqlite:///...`.

    Attributes:
        identity: random, made with the database.
        shared: whether other processes may write to it.

    Raises:
        AdapterConflict: a newer release wrote it.
        AdapterError: the URL is none that is known.
        RegistryUnavailable: it can't be reached.
    """

    def __init__(self, url: str | URL) -> None:
        self._url = _with_driver(url)
        self.shared = self._url.get_backend_name() != "sqlite"
        with self._errors():
            self._engine = _connect(self._url)
            self._writing = Lock()  # SQLite's own waiting is by polling, which is neither fair nor quick
            writer = {"write": True}
            self._writer = self._engine.execution_options(**writer)
            level = {"isolation_level": "REPEATABLE READ"} if self.shared else {}
            self._reader = self._engine.execution_options(**level)
            try:
                with self._writer.begin() as connection:
                    migrate(connection)
                    self.identity: str = connection.execute(select(REVISION.c.database)).scalar_one()
            except BaseException:
                self._engine.dispose()
                raise

    def __str__(self) -> str:
        """Fit for a log: without the password."""
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Write]:
        """A transaction that is durable once the block ends, and undone if it raises.

        Raises:
            RegistryUnavailable: the database does not answer.
        """
        with self._writing, self._errors(), self._writer.begin() as connection:
            count = update(REVISION).values(value=REVISION.c.value + 1).returning(REVISION.c.value)
            yield Write(connection, connection.execute(count).scalar_one(), time.time())

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees the database as it is at one instant.

        Raises:
            RegistryUnavailable: the database does not answer.
        """
        with self._errors(), self._reader.begin() as connection:
            yield connection

    def revision(self) -> int:
        """Grows with each change.

        Raises:
            RegistryUnavailable: the database does not answer.
        """
        with self.read() as connection:
            value: int = connection.execute(select(REVISION.c.value)).scalar_one()
            return value

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise RegistryUnavailable(
                f"the registry's database {self} does not answer: {_line(error)}"
            ) from error
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            raise RegistryUnavailable(f"the registry's database {self} went away: {_line(error)}") from error


def sqlite_url(path: Path) -> URL:
    """Of a file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


def _with_driver(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        raise AdapterError("the database URL can't be read; it is like postgresql://user@host/name") from None
    if backend in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return parsed
    raise AdapterError(
        f"the database URL is of {backend[:40]!r}; there are postgresql://... and sqlite:///..."
    )


def _connect(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
        event.listen(engine, "connect", _durable)
        event.listen(engine, "begin", _begin)
        return engine
    # A replica that hangs must not keep the others from writing for ever.
    options = (
        f"-c lock_timeout={_BUSY_SECONDS}s -c statement_timeout={2 * _BUSY_SECONDS}s "
        f"-c idle_in_transaction_session_timeout={2 * _BUSY_SECONDS}s"
    )
    arguments = {"connect_timeout": _CONNECT_SECONDS, "options": options, "application_name": "multilora"}
    try:
        return create_engine(url, pool_pre_ping=True, connect_args=arguments)
    except ModuleNotFoundError:
        raise AdapterConflict(
            "a Postgres database needs psycopg: pip install 'multilora[postgres]'"
        ) from None


def _durable(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says
    connection.execute("PRAGMA journal_mode=WAL")
    # In WAL mode only FULL waits for the disk at each commit.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _line(error: Exception) -> str:
    """The first line of what the driver says."""
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__
