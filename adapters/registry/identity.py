"""Whose data directory it is: one process at a time, one replica for good, one database."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from pathlib import Path

from adapters.blobs.local import sync
from adapters.errors import AdapterConflict

SQLITE_FILE = "registry.sqlite3"
_FILE = "identity.json"


class DataDir:
    """A data directory that belongs to this process until `close`; made if it does not exist.

    Attributes:
        replica: random, made with the directory; tells this server from others on the same database.

    Raises:
        AdapterConflict: another process uses it.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # other users of the machine read nothing in it
        self.path = path
        self._in_use = (path / "lock").open("w")
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._in_use.close()
            raise AdapterConflict(
                f"{path} is in use by another server; stop it, or give another --data-dir"
            ) from None
        self.replica = uuid.uuid4().hex
        self._database: str | None = None
        if (path / _FILE).is_file():
            known = json.loads((path / _FILE).read_bytes())
            self.replica, self._database = known["replica"], known["database"]

    def bind(self, database: str, is_inside: bool) -> None:
        """Its files are those of the database with this identity, or will be.

        `is_inside`: the database is the file in this directory.

        Raises:
            AdapterConflict: they are another one's, which would count as garbage here.
        """
        is_new = self._database is None and (is_inside or not (self.path / SQLITE_FILE).exists())
        if self._database != database and not is_new:
            raise AdapterConflict(
                f"{self.path} holds the adapters of another database; give the --database-url that it was "
                "used with, or another --data-dir"
            )
        if is_new:
            part = self.path / f"{_FILE}.part"
            part.write_text(json.dumps({"replica": self.replica, "database": database}))
            sync(part)
            os.replace(part, self.path / _FILE)
            sync(self.path)

    def close(self) -> None:
        self._in_use.close()
