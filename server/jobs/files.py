"""Training files: rows in the database, contents on disk, or in the store that servers share.

    data_dir/training/files/<id>       with a store, a copy of what is there

A content is in its place before its row is written, and goes after its row: what a crash leaves is a content
without a row, which `sweep` removes. A file whose time is over stays while a job needs it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, tuple_

from adapters.blobs.local import sync
from adapters.blobs.objects import Objects
from adapters.errors import RegistryUnavailable
from adapters.registry.database import Database, Write
from adapters.registry.records import Caller
from adapters.registry.rows import quota_of
from server.jobs.errors import Conflict, NotThere, OverQuota
from server.jobs.queue import Along, nothing
from server.jobs.records import UNFINISHED, Job, Purpose, TrainingFile, is_file_id, new_id
from server.jobs.rows import file_of, find_file, is_kept, plain
from server.jobs.schema import FILES, JOBS

SETTLED_SECONDS = 3600.0
"""What was written to the store so shortly ago may get its row yet."""
_WINDOW = 16 * 1024**2
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Results:
    """Files whose contents are there. `enter` writes their rows, as part of another transaction."""

    ids: tuple[str, ...] = ()
    enter: Along = nothing


@dataclass(frozen=True, slots=True)
class _Content:
    """What is in its place under `id`."""

    id: str
    size: int
    sha256: str


class Files:
    """The training files of a database, and the contents in one data directory. Safe from any thread.

    Args:
        replica: this server, whose data directory has the contents that are not in the store.
        store: None: the data directories have the only copies.
        max_bytes: of all files together.
    """

    def __init__(
        self,
        database: Database,
        replica: str,
        data_dir: Path,
        store: Objects | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._database, self._replica, self._store = database, replica, store
        self._folder = data_dir / "training" / "files"
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_over in self._folder.glob(f"*{_PART}"):
            left_over.unlink()
        self._max_bytes = max_bytes
        self._coming: set[str] = set()
        self._lock = Lock()  # of `_coming`
        self._fetching = Lock()

    def check_room(self, caller: Caller, size: int) -> None:
        """Whether `size` more bytes may be stored, before they are sent.

        Raises:
            OverQuota: naming the bound.
        """
        with self._database.read() as connection:
            self._check(connection, caller.tenant, size)

    def add(
        self,
        caller: Caller,
        content: Path,
        filename: str,
        expires_after: float | None = None,
    ) -> TrainingFile:
        """Take a file of this file system over; it is the caller's tenant's.

        Args:
            expires_after: seconds.

        Raises:
            OverQuota: the tenant, or the server, has as many bytes as it may have.
            TenantNotFound: the tenant was removed meanwhile.
        """
        with self._placed(content) as (placed,), self._database.write() as write:
            self._check(write.connection, caller.tenant, placed.size)
            return self._enter(write, caller, placed, filename, "fine-tune", expires_after)

    @contextmanager
    def results(self, job: Job, contents: Mapping[str, bytes]) -> Iterator[Results]:
        """Files that `job` gives, by their names, in its tenant, whatever that may store.

        Those that were not entered when the block ends are gone.
        """
        owner, entered = Caller(job.tenant, job.actor), False
        parts = [self._folder / f"{job.id}-{number}{_PART}" for number in range(len(contents))]

        def enter(write: Write) -> None:
            nonlocal entered
            entered = True
            for name, content in zip(contents, placed, strict=True):
                self._enter(write, owner, content, name, "fine-tune-results", None)

        try:
            for part, content in zip(parts, contents.values(), strict=True):
                part.write_bytes(content)
            with self._placed(*parts) as placed:
                yield Results(tuple(content.id for content in placed), enter)
                if not entered:
                    self._remove_contents(placed)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    def get(self, caller: Caller, file_id: str) -> TrainingFile:
        """One file.

        Raises:
            NotThere: there is none, its time is over, or it is another tenant's.
        """
        with self._database.read() as connection:
            return find_file(connection, file_id, caller)

    def list(
        self,
        caller: Caller,
        *,
        after: str | None = None,
        limit: int = 10_000,
        purpose: str | None = None,
        oldest: bool = False,
    ) -> tuple[TrainingFile, ...]:
        """Files of the caller's tenant (of all, for an operator), newest first, or from the `oldest` on.

        Raises:
            NotThere: there is no file `after`.
        """
        age = (FILES.c.number, FILES.c.id)  # what a job gives comes in at once, under one number
        order = age if oldest else [column.desc() for column in age]
        query = select(FILES).where(is_kept(time.time())).order_by(*order).limit(limit)
        if not caller.operator:
            query = query.where(FILES.c.tenant == caller.tenant)
        if purpose is not None:
            query = query.where(FILES.c.purpose == purpose)
        with self._database.read() as connection:
            if after is not None:
                file = find_file(connection, after, caller)
                last = (file.number, file.id)
                query = query.where(tuple_(*age) > last if oldest else tuple_(*age) < last)
            return tuple(map(file_of, connection.execute(query).mappings()))

    def delete(self, caller: Caller, file_id: str) -> TrainingFile:
        """Delete a file and its content.

        Raises:
            NotThere: as `get`.
            Conflict: a job that is not over needs it; names the job.
        """
        with self._database.write() as write:
            file = find_file(write.connection, file_id, caller)
            in_use = select(JOBS.c.id).where(_needs(file_id), JOBS.c.status.in_(UNFINISHED))
            job = write.connection.execute(in_use.order_by(JOBS.c.number)).scalars().first()
            if job is not None:
                raise Conflict(
                    f"{file_id} is in use by {job}, which is not over; wait for it, or cancel it first",
                    code="file_in_use",
                )
            _forget(write, file, caller)
        self._remove_content(file_id)
        return file

    def path(self, file_id: str) -> Path:
        """The content on this machine, fetched from the store if need be. For this server alone.

        Raises:
            NotThere: it is gone, or on another server's disk.
            RegistryUnavailable: the store does not answer.
        """
        if not is_file_id(file_id):
            raise NotThere(f"No such File object: {file_id[:100]}", "id", "file_not_found")
        path = self._folder / file_id
        with self._fetching:
            if not path.is_file():
                self._fetch(file_id, path)
        return path

    def sweep(self) -> tuple[str, ...]:
        """Remove files that are over and that no job needs, and contents without a row; ids of the former."""
        over = select(FILES).where(~is_kept(time.time()))
        with self._database.read() as connection:
            due = connection.execute(over.limit(1)).first() is not None
        gone: list[str] = []
        if due:
            with self._database.write() as write:
                for row in write.connection.execute(over).mappings().all():
                    _forget(write, file_of(row), Caller(row["tenant"], "expiry"))
                    gone.append(row["id"])
        self._remove_orphans()
        return tuple(gone)

    @contextmanager
    def _placed(self, *contents: Path) -> Iterator[tuple[_Content, ...]]:
        """Contents in their places, for a block that writes their rows; gone again if it raises."""
        found = tuple(_Content(new_id("file"), path.stat().st_size, _sha256(path)) for path in contents)
        ids = {content.id for content in found}
        with self._lock:
            self._coming |= ids
        try:
            for path, content in zip(contents, found, strict=True):
                self._place(path, content.id)
            yield found
        except BaseException:
            self._remove_contents(found)
            raise
        finally:
            with self._lock:
                self._coming -= ids

    def _enter(
        self,
        write: Write,
        caller: Caller,
        content: _Content,
        filename: str,
        purpose: Purpose,
        expires_after: float | None,
    ) -> TrainingFile:
        values = {
            "id": content.id,
            "number": write.revision,
            "tenant": caller.tenant,
            "filename": plain(filename),
            "purpose": purpose,
            "bytes": content.size,
            "sha256": content.sha256,
            "created": write.now,
            "expires": None if expires_after is None else write.now + expires_after,
            "replica": self._replica if self._store is None else "",
        }
        write.connection.execute(insert(FILES).values(values))
        after: dict[str, object] = {"bytes": content.size, "sha256": content.sha256}
        write.audit(caller, "file.create", content.id, None, after)
        return TrainingFile(**values)  # type: ignore[arg-type]

    def _check(self, connection: Connection, tenant: str, size: int) -> None:
        total = func.coalesce(func.sum(FILES.c.bytes), 0)
        most = quota_of(connection, tenant).max_file_bytes
        for bound, name, query in (
            (most, f"tenant {tenant!r}", select(total).where(FILES.c.tenant == tenant)),
            (self._max_bytes, "this server", select(total)),
        ):
            stored = 0 if bound is None else int(connection.execute(query).scalar_one())
            if bound is not None and stored + size > bound:
                raise OverQuota(
                    f"{name} has {stored} bytes of training files; with {size} more it would be over the "
                    f"{bound} that it may have; delete some files"
                )

    def _place(self, content: Path, file_id: str) -> None:
        """On disk for good, here or in the store."""
        sync(content)
        if self._store is not None:
            self._store.put(file_id, content)
        os.replace(content, self._folder / file_id)
        sync(self._folder)

    def _fetch(self, file_id: str, path: Path) -> None:
        with self._database.read() as connection:
            row = connection.execute(select(FILES).where(FILES.c.id == file_id)).mappings().first()
        if row is None or row["replica"] or self._store is None:
            where = "is gone" if row is None else "is on the disk of another server"
            raise NotThere(f"the content of {file_id} {where}", "id", "file_not_found")
        part = path.with_suffix(_PART)
        try:
            with part.open("wb") as target:
                for start in range(0, row["bytes"], _WINDOW):
                    target.write(self._store.read(file_id, start, min(_WINDOW, row["bytes"] - start)))
        except FileNotFoundError:
            raise NotThere(f"the content of {file_id} is gone", "id", "file_not_found") from None
        if _sha256(part) != row["sha256"]:
            part.unlink()
            raise RegistryUnavailable(f"the store gives another content of {file_id} than was put there")
        os.replace(part, path)

    def _remove_contents(self, contents: tuple[_Content, ...]) -> None:
        for content in contents:
            self._remove_content(content.id)

    def _remove_content(self, file_id: str) -> None:
        with suppress(FileNotFoundError):
            (self._folder / file_id).unlink()
        if self._store is not None:
            self._store.delete(file_id)

    def _remove_orphans(self) -> None:
        """Contents are there before their rows, so what is listed first is no orphan if it is coming."""
        here = {path.name for path in self._folder.iterdir() if path.suffix != _PART}
        there = {} if self._store is None else self._store.list("")
        settled = {key for key, written in there.items() if written < time.time() - SETTLED_SECONDS}
        with self._lock:
            coming = set(self._coming)
        with self._database.read() as connection:
            known = set(connection.execute(select(FILES.c.id)).scalars())
        for file_id in here - coming - known:
            with suppress(FileNotFoundError):
                (self._folder / file_id).unlink()
        for file_id in settled - coming - known:
            if self._store is not None and is_file_id(file_id):
                self._store.delete(file_id)


def is_full(error: OSError) -> bool:
    """Whether a disk, or what this server may have of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _needs(file_id: str) -> ColumnElement[bool]:
    return or_(JOBS.c.training_file == file_id, JOBS.c.validation_file == file_id)


def _forget(write: Write, file: TrainingFile, caller: Caller) -> None:
    write.connection.execute(delete(FILES).where(FILES.c.id == file.id))
    write.audit(
        caller, "file.delete", file.id, {"bytes": file.bytes, "sha256": file.sha256}, None, file.tenant
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
