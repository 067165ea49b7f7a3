"""Keeps the files on this machine that somebody needs, and removes the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from adapters.blobs.blobs import Blobs
from adapters.registry.files import Files
from adapters.registry.snapshot import Snapshot


class Keeper:
    """Files on this machine: those of live versions, and of digests that are held.

    Attributes:
        on_unused: called with a digest whose files are gone, since no version has it and nobody holds it.
    """

    def __init__(self, blobs: Blobs, snapshot: Snapshot, files: Files) -> None:
        self._blobs, self._snapshot, self._files = blobs, snapshot, files
        self._removing = Lock()  # held while files are removed, and while somebody says that they are needed
        self._loose: set[str] = set()
        self.on_unused: Callable[[str], None] = lambda digest: None

    def release(self, digest: str) -> None:
        """Give back one hold of the snapshot."""
        if self._snapshot.release(digest):
            self._loose.add(digest)
            # The caller is a request that ends: if files are being removed, these wait for the next time.
            if self._removing.acquire(blocking=False):
                try:
                    self._remove()
                finally:
                    self._removing.release()

    @contextmanager
    def stored(self, staged: Path, digest: str) -> Iterator[None]:
        """Make a staged copy the blob of `digest`; by the end of the block a version must need it."""
        with self._removing:
            self._snapshot.keep(digest)
        try:
            self._blobs.commit(staged, digest)
            self._files.trust(digest, self._blobs.folder(digest))
            yield
        finally:
            self.release(digest)

    @contextmanager
    def nobody_stores(self) -> Iterator[None]:
        """Nobody begins to store a blob within the block."""
        with self._removing:
            yield

    def clear(self, candidates: set[str]) -> None:
        """Remove those of them that nothing needs."""
        with self._removing:
            self._loose |= candidates
            self._remove()

    def _remove(self) -> None:
        while self._loose:
            digest = self._loose.pop()
            if self._snapshot.is_unused(digest):
                self._files.forget(digest)
                self._blobs.forget(digest)
                self.on_unused(digest)
