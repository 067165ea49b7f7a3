"""The files of adapters by digest, as the registry sees them: on this machine alone, or shared by several.

Without a blob URL the data directory has the only copies. With one, the store behind it has every blob, and
the data directory is a cache of it with a budget.

    commit:  staged files -> store -> data directory        returns when both have them
    fetch:   store -> staged files, checked -> data directory
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from adapters.blobs.cache import CacheIndex
from adapters.blobs.content import why_damaged
from adapters.blobs.local import BlobStore, sync
from adapters.blobs.location import open_objects
from adapters.blobs.remote import RemoteStore
from adapters.errors import AdapterError, AdapterNotFound, InvalidAdapter, RegistryUnavailable

log = logging.getLogger(__name__)
SETTLED_SECONDS = 3600.0
"""A stored blob is left alone for so long: whoever writes it may not have written its row yet."""


class Blobs:
    """Blobs of one data directory, and of the store that it shares with others. Safe from any thread.

    Args:
        data_dir: has them in `adapters/`, and what was set aside in `quarantine/`.
        remote: None: the data directory has the only copies.
        cache_bytes: what local copies may take if there is a store; None: no bound.

    Attributes:
        in_use: whether local files must stay, as somebody holds them. It must not wait for a lock that is
            held while these methods are called.
    """

    def __init__(
        self, data_dir: Path, remote: RemoteStore | None = None, cache_bytes: int | None = None
    ) -> None:
        self._quarantine = data_dir / "quarantine"
        self._local = BlobStore(data_dir / "adapters")
        self._remote = remote
        self._cache = CacheIndex(self._local, cache_bytes if remote is not None else None)
        self._lock = Lock()  # of the cache's index, of flights, and of what comes and goes locally
        self._flights: dict[str, Future[None]] = {}
        self.in_use: Callable[[str], bool] = lambda digest: False

    def folder(self, digest: str) -> Path:
        """Where the blob lies on this machine, if it is there; see `fetch`.

        Raises:
            AdapterNotFound: `digest` is not a digest, so that nothing else ever becomes a path.
        """
        return self._local.folder(digest)

    def digests(self) -> list[str]:
        """Every blob on this machine."""
        return self._local.digests()

    def settled(self, seconds: float = SETTLED_SECONDS) -> list[str]:
        """Every blob wherever it is kept, but for those that were written to the store so shortly ago.

        Those which no live version has are garbage.
        """
        if self._remote is None:
            return self._local.digests()
        return self._remote.older_than(seconds)

    def has(self, digest: str) -> bool:
        """Whether the blob is where every server finds it."""
        return self._local.has(digest) if self._remote is None else self._remote.has(digest)

    def stage(
        self, config: bytes, weights: Path, max_bytes: int, labels: bytes | None = None
    ) -> AbstractContextManager[Path]:
        """A private copy of the files; see `BlobStore.stage`."""
        return self._local.stage(config, weights, max_bytes, labels)

    def commit(self, staged: Path, digest: str) -> None:
        """Make a staged copy the blob of `digest`; when this returns, every server can fetch it.

        Raises:
            RegistryUnavailable: the store does not take it; nothing has changed on this machine.
        """
        if self._remote is not None:
            self._remote.publish(digest, staged)
        with self._lock:
            self._local.commit(staged, digest)
            self._cache.use(digest)
        self._evict()

    def fetch(self, digest: str) -> Path:
        """The folder of the blob's files, which are brought here if need be; one thread does, others wait.

        Hold the digest first, or the files may leave again.

        Raises:
            AdapterNotFound: there is no such blob.
            InvalidAdapter: the stored one is damaged; nothing of it stays here.
            RegistryUnavailable: the store does not answer, or the disk is full.
        """
        folder = self._local.folder(digest)
        with self._lock:
            if self._local.has(digest):
                self._local.check(digest)
                self._cache.use(digest)
                return folder
            flight = self._flights.get(digest)
            mine = flight is None
            if flight is None:
                flight = self._flights[digest] = Future()
        if mine:
            self._fly(digest, flight)
        flight.result()
        return folder

    def remove(self, digest: str) -> None:
        """Delete the blob everywhere. Whoever has opened its files here may go on reading them."""
        self.forget(digest)
        if self._remote is not None:
            self._remote.remove(digest)

    def forget(self, digest: str) -> None:
        """Delete the files on this machine; the store's stay."""
        with self._lock:
            self._local.remove(digest)
            self._cache.drop(digest)

    def upload_missing(self, digests: Iterable[str]) -> list[str]:
        """Store those of `digests` that only this machine has; returns them.

        They were published before there was a blob URL. Damaged ones are not stored, and logged.
        """
        if self._remote is None:
            return []
        stored = set(self._remote.older_than(0))
        uploaded = []
        for digest in sorted(set(digests) & set(self._local.digests()) - stored):
            reason = self._local_fault(digest)
            if reason is None:
                self._remote.publish(digest, self._local.folder(digest))
                uploaded.append(digest)
            else:
                log.error("adapter %s is not uploaded to the blob store: %s", digest[:12], reason)
        return uploaded

    def verify(self, digest: str) -> str | None:
        """None if all copies are what the digest says, else what is wrong; reads them in full.

        Raises:
            RegistryUnavailable: the store does not answer.
        """
        return self._local_fault(digest) or self._remote_fault(digest)

    def quarantine(self, digest: str) -> bool:
        """Set aside the copies that are damaged, and replace them from a good one.

        They are kept for the operator, in `quarantine/` of the data directory and of the store.

        Returns:
            Whether a good copy is left.
        """
        label = f"{digest}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        local_fault, remote_fault = self._local_fault(digest), self._remote_fault(digest)
        if local_fault is not None:
            with self._lock:
                self._local.set_aside(digest, self._quarantine / label)
                self._cache.drop(digest)
            log.error("adapter %s is set aside in %s: %s", digest[:12], self._quarantine / label, local_fault)
        if self._remote is None:
            return local_fault is None
        if remote_fault is not None:
            self._remote.quarantine(digest, label)
            log.error("adapter %s is set aside in the blob store: %s", digest[:12], remote_fault)
            if local_fault is None and self._local.has(digest):
                self._remote.publish(digest, self._local.folder(digest))
                return True
            return False
        self.fetch(digest)
        return True

    def close(self) -> None:
        """End connections."""
        if self._remote is not None:
            self._remote.close()

    def _local_fault(self, digest: str) -> str | None:
        """What is wrong with the files here. With a store there may be none."""
        try:
            if not self._local.has(digest):
                return "it is not there" if self._remote is None else None
            self._local.check(digest)
        except InvalidAdapter as error:
            return str(error)
        return why_damaged(self._local.folder(digest), digest)

    def _remote_fault(self, digest: str) -> str | None:
        """What is wrong with the stored files: they are fetched as a server would, and thrown away."""
        if self._remote is None:
            return None
        with self._local.staging() as staged:
            try:
                self._remote.fetch(digest, staged)
            except AdapterNotFound:
                return "the blob store does not have it"
            except InvalidAdapter as error:
                return str(error)
            return why_damaged(staged, digest)

    def _fly(self, digest: str, flight: Future[None]) -> None:
        """Fetch the blob for all who wait for it."""
        try:
            self._bring(digest)
        except BaseException as error:
            self._land(digest)
            flight.set_exception(error)
            return
        self._land(digest)
        flight.set_result(None)
        self._evict()

    def _land(self, digest: str) -> None:
        with self._lock:
            self._flights.pop(digest, None)

    def _bring(self, digest: str) -> None:
        if self._remote is None:
            raise AdapterNotFound(f"no adapter with digest {digest[:12]}")
        began = time.monotonic()
        try:
            with self._local.staging() as staged:
                self._remote.fetch(digest, staged)
                for path in (*staged.iterdir(), staged):
                    sync(path)
                with self._lock:
                    self._local.commit(staged, digest)
                    self._cache.use(digest)
        except OSError as error:
            raise RegistryUnavailable(
                f"adapter {digest[:12]} can't be kept in {self._quarantine.parent}: {error.strerror}"
            ) from error
        log.info("fetched adapter %s in %.2f s", digest[:12], time.monotonic() - began)

    def _evict(self) -> None:
        """Give up what is over the budget, unless it is held or this machine alone has it."""
        if self._remote is None:
            return
        with self._lock:
            excess = list(self._cache.excess())
        for digest in excess:
            try:
                stored = self.in_use(digest) or self._remote.has(digest)
            except AdapterError as error:
                log.warning("the cache of adapters stays over its budget: %s", error)
                return
            with self._lock:
                if stored and digest in self._cache.excess() and not self.in_use(digest):
                    self._local.remove(digest)
                    self._cache.drop(digest)


def open_blobs(data_dir: Path, blob_url: str | None, cache_bytes: int | None) -> Blobs:
    """Blobs as the settings `data_dir`, `blob_url` and `blob_cache_gb` say.

    Raises:
        AdapterError: the URL is wrong, or the store can't be written to, read and listed; in one line.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if blob_url is None:
        if cache_bytes is not None:
            raise AdapterError("--blob-cache-gb is for the cache of a --blob-url, and there is none")
        return Blobs(data_dir)
    remote = RemoteStore(open_objects(blob_url, data_dir))
    remote.probe()
    return Blobs(data_dir, remote, cache_bytes)
