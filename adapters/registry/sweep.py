"""Looks at every blob: sets aside what is damaged, and removes what nothing needs from where it is shared.

A replica may be about to read what another one has just deleted, or to publish it again. So a stored blob is
removed only when all its versions have been deleted, and nobody has begun to store it, for a while; and in a
write transaction, which keeps publishers out.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from adapters.blobs.blobs import Blobs
from adapters.registry.database import Database, Write
from adapters.registry.files import Files
from adapters.registry.keeping import Keeper
from adapters.registry.records import LIVE, SweepReport
from adapters.registry.schema import BLOBS, VERSIONS
from adapters.registry.snapshot import Snapshot

GRACE_SECONDS = 600.0


def claim(write: Write, digest: str) -> None:
    """Note that somebody stores this blob now."""
    write.connection.execute(delete(BLOBS).where(BLOBS.c.digest == digest))
    write.connection.execute(insert(BLOBS).values(digest=digest, touched=write.now))


def is_claimed(connection: Connection, digest: str) -> bool:
    """Whether it was not swept since."""
    return connection.execute(select(BLOBS.c.digest).where(BLOBS.c.digest == digest)).first() is not None


def sweep(database: Database, blobs: Blobs, snapshot: Snapshot, keeper: Keeper, files: Files) -> SweepReport:
    """See the head of this file.

    Raises:
        RegistryUnavailable: the database or the store does not answer.
    """
    keeper.clear(set(blobs.digests()))
    checked, quarantined, missing = 0, [], []
    for digest in sorted(snapshot.needed()):
        if blobs.verify(digest) is None:
            checked += 1
        elif digest in snapshot.needed():  # it was not deleted in between
            files.forget(digest)
            if not blobs.quarantine(digest):
                missing.append(digest)
            quarantined.append(digest)
    candidates = set(blobs.settled()) - snapshot.needed()
    removed = [digest for digest in sorted(candidates) if _remove(database, blobs, snapshot, keeper, digest)]
    return SweepReport(checked, tuple(quarantined), tuple(missing), tuple(removed))


def _remove(database: Database, blobs: Blobs, snapshot: Snapshot, keeper: Keeper, digest: str) -> bool:
    """Remove a blob everywhere, unless it is needed, or was until shortly ago."""
    with keeper.nobody_stores(), database.write() as write:
        recently = write.now - GRACE_SECONDS
        columns = VERSIONS.c
        needed = select(columns.version).where(
            columns.digest == digest, columns.state.in_(LIVE) | (columns.changed > recently)
        )
        claimed = select(BLOBS.c.digest).where(BLOBS.c.digest == digest, BLOBS.c.touched > recently)
        for query in (needed.limit(1), claimed):
            if write.connection.execute(query).first() is not None:
                return False
        if snapshot.is_held(digest):
            return False
        write.connection.execute(delete(BLOBS).where(BLOBS.c.digest == digest))
        blobs.remove(digest)
        return True
