"""What is published and what is held, in memory, so that no request waits for the database."""

from __future__ import annotations

from collections import Counter
from threading import Lock

from adapters.errors import AdapterNotFound
from adapters.registry.records import AdapterVersion


class Snapshot:
    """The live versions of one base, and for each digest how many versions and holders need its files.

    Safe from any thread; its lock is never held across a disk access.
    """

    def __init__(self, base_digest: str) -> None:
        self._base_digest = base_digest
        self._lock = Lock()
        self._versions: dict[str, tuple[AdapterVersion, ...]] = {}
        self._live: Counter[str] = Counter()
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many versions are live, of every base."""
        with self._lock:
            return self._live.total()

    def add(self, version: AdapterVersion) -> None:
        """Make visible; versions of other bases only keep their files."""
        with self._lock:
            self._live[version.digest] += 1
            if version.base_digest == self._base_digest:
                self._versions[version.name] = (*self._versions.get(version.name, ()), version)

    def discard(self, version: AdapterVersion) -> None:
        with self._lock:
            self._live[version.digest] -= 1
            rest = tuple(other for other in self._versions[version.name] if other is not version)
            if rest:
                self._versions[version.name] = rest
            else:
                del self._versions[version.name]

    def all(self) -> tuple[AdapterVersion, ...]:
        """By name, then by version."""
        with self._lock:
            groups = sorted(self._versions.items())
        return tuple(version for _, group in groups for version in group)

    def versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """Oldest first."""
        with self._lock:
            return self._versions.get(name, ())

    def hold(self, digest: str) -> None:
        with self._lock:
            if not self._live[digest] and not self._held[digest]:
                raise AdapterNotFound(f"no adapter with digest {digest[:12]}")
            self._held[digest] += 1

    def release(self, digest: str) -> bool:
        """Take one hold back; whether nothing needs the files now."""
        with self._lock:
            if not self._held[digest]:
                raise ValueError(f"digest {digest[:12]} is not held")
            self._held[digest] -= 1
            return not self._held[digest] and not self._live[digest]

    def is_unused(self, digest: str) -> bool:
        """Whether nothing needs the files. Then nobody can hold them either, until a version is added."""
        with self._lock:
            unused = not self._live[digest] and not self._held[digest]
            if unused:
                self._live.pop(digest, None)
                self._held.pop(digest, None)
            return unused
