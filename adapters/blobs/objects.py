"""Where blobs are shared: objects by key behind one URL, whatever keeps them.

`bucket.py` has those that fsspec reaches (S3 and others), `shared.py` a folder on a shared disk. Keys are
made of digests and of names that the code gives, never of what a stranger wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Objects(Protocol):
    """Whole objects, which appear at once or not at all. Safe from any thread.

    Every method raises RegistryUnavailable, in one line that names the URL, if the store does not answer
    after some attempts or refuses us.
    """

    url: str

    def create(self, key: str, source: Path | bytes) -> bool:
        """Store it unless there is one already; whether it was stored."""
        ...

    def put(self, key: str, source: Path | bytes) -> None:
        """Store it in place of any other."""
        ...

    def read(self, key: str, start: int, size: int) -> bytes:
        """`size` bytes from `start`, or fewer where it ends before.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def list(self, folder: str) -> Mapping[str, float]:
        """Keys of all objects below `folder` (all there are, if it is empty), and when each was written.

        Unix times in seconds, of the store's own clock.
        """
        ...

    def move(self, key: str, target: str) -> None:
        """Give it another key."""
        ...

    def delete(self, key: str) -> None:
        """Remove it, if it is there."""
        ...

    def close(self) -> None:
        """End connections."""
        ...
