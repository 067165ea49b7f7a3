"""An API key made on the registry's database itself, before there is a server that could be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import AdapterConflict, AdapterError, QuotaExceeded, RegistryUnavailable, TenantNotFound
from adapters.registry.database import Database, sqlite_url
from adapters.registry.identity import SQLITE_FILE, DataDir
from adapters.registry.keys import Keys
from adapters.registry.names import DEFAULT_TENANT
from adapters.registry.records import Caller
from server.access.shown import key_object
from server.cli.client import Json
from server.cli.exits import Exit, Failed

CALLER = Caller(actor="cli", operator=True)
_EXITS = {
    AdapterConflict: Exit.CONFLICT,
    QuotaExceeded: Exit.NOT_ALLOWED,
    RegistryUnavailable: Exit.UNREACHABLE,
    TenantNotFound: Exit.NOT_FOUND,
}


def create_key(wanted: Json, data_dir: Path | None, database_url: str | None) -> Json:
    """Make a key.

    Args:
        wanted: as the body of `POST /v1/keys`.
        data_dir: where a SQLite database is or will be; `database_url` in its place for another one.

    Returns:
        As the answer of `POST /v1/keys`.

    Raises:
        Failed: the database refuses, or a server has it that would not notice.
    """
    expires = wanted.get("expires_in")
    try:
        with _opened(data_dir, database_url) as database:
            keys = Keys(database, lambda: None)
            if "operator" not in wanted["scopes"] and not keys.list(limit=1):
                raise Failed("the first key must have the scope operator: add --scope operator")
            key, secret = keys.create(
                wanted.get("tenant", DEFAULT_TENANT),
                wanted["name"],
                wanted["scopes"],
                None if expires is None else time.time() + expires,
                CALLER,
            )
    except AdapterError as error:
        raise Failed(str(error), _EXITS.get(type(error), Exit.FAILED)) from None
    return {**key_object(key), "secret": secret}


@contextmanager
def _opened(data_dir: Path | None, database_url: str | None) -> Iterator[Database]:
    """The database; one of a data directory is locked against servers, which look at it once only."""
    if data_dir is None:
        database = Database(database_url or "")
        try:
            yield database
        finally:
            database.close()
        return
    try:
        place = DataDir(data_dir)
    except OSError as error:
        raise Failed(f"{error.filename or data_dir}: {error.strerror}") from None
    try:
        database = Database(sqlite_url(data_dir / SQLITE_FILE))
        try:
            place.bind(database.identity, is_inside=True)
            yield database
        finally:
            database.close()
    finally:
        place.close()
