"""Transactions: serial, durable or undone, with one revision and one audit log; on both databases."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from threading import Barrier, Thread

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from adapters.errors import AdapterConflict, AdapterError, RegistryUnavailable
from adapters.registry.database import Database, sqlite_url
from adapters.registry.records import LOCAL, Caller
from adapters.registry.schema import AUDIT, TENANTS


def tenants(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(select(TENANTS.c.name).order_by(TENANTS.c.name)).scalars())


def add(database: Database, name: str) -> int:
    with database.write() as write:
        row = {"name": name, "created": write.now, "quota": {}, "revision": write.revision}
        write.connection.execute(TENANTS.insert().values(row))
        return write.revision


def test_each_transaction_counts_up_and_one_that_fails_leaves_nothing(database: Database) -> None:
    before = database.revision()
    assert add(database, "acme") == before + 1
    with suppress(AdapterConflict), database.write() as write:
        write.connection.execute(TENANTS.update().values(created=0.0))
        raise AdapterConflict("no")
    assert add(database, "beta") == before + 2
    assert database.revision() == before + 2
    assert tenants(database) == ["acme", "beta", "default"]


def test_writers_of_two_connections_are_serial(database_url: str | None, tmp_path: Path) -> None:
    url = database_url or sqlite_url(tmp_path / "registry.sqlite3")
    databases = [Database(url), Database(url)]
    assert databases[0].identity == databases[1].identity
    before, together = databases[0].revision(), Barrier(4)
    seen: list[int] = []

    def work(number: int) -> None:
        together.wait()
        for step in range(8):
            seen.append(add(databases[number % 2], f"t{number}-{step}"))

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(before + 1, before + 33))
    for database in databases:
        database.close()


def test_a_read_sees_one_instant(database_url: str | None, tmp_path: Path) -> None:
    url = database_url or sqlite_url(tmp_path / "registry.sqlite3")
    reader, writer = Database(url), Database(url)
    count = text("SELECT count(*) FROM tenants")
    with reader.read() as connection:
        assert connection.execute(count).scalar() == 1
        add(writer, "acme")
        assert connection.execute(count).scalar() == 1
    assert tenants(reader) == ["acme", "default"]
    reader.close()
    writer.close()


def test_the_audit_log_grows_by_one_and_can_t_be_changed(database: Database) -> None:
    with database.write() as write:
        write.audit(LOCAL, "first", "tone@1", None, {"size": 1})
        write.audit(Caller("acme", "key-1"), "second", "acme/tone@1", {"size": 1}, None)
    with suppress(AdapterConflict), database.write() as write:
        write.audit(LOCAL, "third", "tone@2")
        raise AdapterConflict("no")
    with database.write() as write:
        write.audit(LOCAL, "fourth", "acme/tone@2", tenant="acme")
    with database.read() as connection:
        rows = connection.execute(select(AUDIT).order_by(AUDIT.c.id)).all()
    assert [(row.id, row.tenant, row.actor, row.action) for row in rows] == [
        (1, "default", "local", "first"),
        (2, "acme", "key-1", "second"),
        (3, "acme", "local", "fourth"),
    ]
    assert [(row.before, row.after) for row in rows[:2]] == [(None, {"size": 1}), ({"size": 1}, None)]
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="append-only"), database.write() as write:
            write.connection.execute(text(statement))
    if database.shared:
        with pytest.raises(DBAPIError, match="append-only"), database.write() as write:
            write.connection.execute(text("TRUNCATE audit"))


def test_a_commit_is_on_disk(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "a file with % and ?"))
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()
    assert (tmp_path / "a file with % and ?").is_file()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "mysql://localhost/x",
            "the database URL is of 'mysql'; there are postgresql://... and sqlite:///...",
        ),
        ("no url", "can't be read; it is like postgresql://"),
        ("", "can't be read"),
    ],
)
def test_urls_of_other_databases(url: str, message: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(message)) as caught:
        Database(url)
    assert not isinstance(caught.value, AdapterConflict)  # nothing that is stored has to do with it


def test_a_database_that_can_t_be_reached_is_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailable) as caught:
        Database(f"postgresql://me:secret@/name?host={tmp_path}")
    assert "does not answer" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        Database(sqlite_url(tmp_path / "no folder" / "file"))
