"""Which blobs leave the local folder when it is over its budget: those that were used least recently."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

from adapters.blobs.local import BlobStore


class CacheIndex:
    """Sizes of all local blobs, in the order of their last use. Not safe from threads.

    The order survives a restart, as the time stamps of the blobs' folders.

    Args:
        budget: bytes that all of them together may take; None: no bound, and nothing is measured.
    """

    def __init__(self, local: BlobStore, budget: int | None) -> None:
        self._local, self._budget = local, budget
        self._sizes: OrderedDict[str, int] = OrderedDict()
        digests = local.digests() if budget is not None else []
        times = {digest: local.folder(digest).stat().st_mtime_ns for digest in digests}
        for digest in sorted(times, key=lambda digest: times[digest]):
            self._sizes[digest] = local.size(digest)
        self.total = sum(self._sizes.values())

    def use(self, digest: str) -> None:
        """It is there, and has just been used or written."""
        if self._budget is None:
            return
        self.drop(digest)
        self._sizes[digest] = self._local.size(digest)
        self.total += self._sizes[digest]
        with suppress(OSError):
            os.utime(self._local.folder(digest))

    def drop(self, digest: str) -> None:
        """It is gone."""
        self.total -= self._sizes.pop(digest, 0)

    def excess(self) -> Iterator[str]:
        """Blobs to give up, the longest unused first, while there is too much; never the one used last.

        Whoever gives one up calls `drop`.
        """
        for digest in list(self._sizes)[:-1]:
            if self._budget is None or self.total <= self._budget:
                return
            yield digest
