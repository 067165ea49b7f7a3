"""The part of `adapters.registry.registry.Registry` that HTTP needs, as a protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from adapters.registry.keys import Keys
from adapters.registry.records import (
    LOCAL,
    AdapterVersion,
    Alias,
    AuditEntry,
    Caller,
    Desired,
    Lineage,
    Promote,
    Route,
    SweepReport,
    Target,
)
from adapters.registry.tenants import Tenants


class Registry(Protocol):
    """What changes something blocks, and so do `find`, `history`, `alias_history`, `lineage` and `folder`.

    Every call by name raises `AdapterNotFound` for what the caller can't see, and every change
    `AdapterForbidden` for what the caller sees but does not own.
    """

    on_change: Callable[[], None]

    def publish(
        self,
        name: str,
        config: bytes,
        weights: Path,
        source: str = "",
        labels: bytes | None = None,
        quantization: str | None = None,
        *,
        caller: Caller = LOCAL,
        lineage: Lineage = ...,
        promote: Promote = "auto",
        digest: str | None = None,
    ) -> tuple[AdapterVersion, bool]: ...

    def publish_folder(
        self,
        name: str,
        folder: Path,
        source: str = "",
        *,
        caller: Caller = LOCAL,
        promote: Promote = "auto",
    ) -> tuple[AdapterVersion, bool]: ...

    def begin(
        self,
        name: str,
        config: bytes,
        weights: Path,
        source: str = "",
        labels: bytes | None = None,
        quantization: str | None = None,
        *,
        caller: Caller = LOCAL,
        lineage: Lineage = ...,
        promote: Promote = "auto",
        digest: str | None = None,
    ) -> AdapterVersion: ...

    def finish(self, version: AdapterVersion) -> AdapterVersion: ...

    def unfinished(self) -> Sequence[AdapterVersion]: ...

    def route(self, ref: str, caller: Caller = LOCAL, key: str | None = None) -> Route: ...

    def resolve(self, ref: str, caller: Caller = LOCAL) -> AdapterVersion: ...

    def find(self, ref: str, caller: Caller = LOCAL) -> AdapterVersion: ...

    def list(self, caller: Caller = LOCAL) -> Sequence[AdapterVersion]: ...

    def history(self, caller: Caller = LOCAL) -> Sequence[AdapterVersion]: ...

    def versions(self, name: str, caller: Caller = LOCAL) -> Sequence[AdapterVersion]: ...

    def aliases(self, name: str, caller: Caller) -> Sequence[Alias]: ...

    def alias_history(self, name: str, alias: str, caller: Caller) -> Sequence[Alias]: ...

    def set_alias(
        self,
        name: str,
        alias: str,
        targets: Sequence[Target],
        *,
        shadow: int | None = None,
        expected: int | None = None,
        caller: Caller,
    ) -> Alias: ...

    def remove_alias(self, name: str, alias: str, *, expected: int | None = None, caller: Caller) -> None: ...

    def promote(
        self, ref: str, alias: str = "default", *, expected: int | None = None, caller: Caller
    ) -> Alias: ...

    def rollback(
        self, name: str, alias: str = "default", *, expected: int | None = None, caller: Caller
    ) -> Alias: ...

    def canary(
        self, ref: str, percent: int, alias: str = "default", *, expected: int | None = None, caller: Caller
    ) -> Alias: ...

    def deprecate(self, ref: str, reason: str | None, *, caller: Caller) -> AdapterVersion: ...

    def delete(
        self, ref: str, *, caller: Caller = LOCAL, force: bool = False
    ) -> Sequence[AdapterVersion]: ...

    def want(self, ref: str, desired: Desired, *, caller: Caller) -> AdapterVersion: ...

    def wanted(self) -> Sequence[AdapterVersion]: ...

    def share(self, name: str, tenant: str, *, caller: Caller) -> None: ...

    def unshare(self, name: str, tenant: str, *, caller: Caller) -> None: ...

    def shares(self, name: str, caller: Caller) -> Sequence[str]: ...

    def lineage(self, ref: str, caller: Caller) -> Sequence[AdapterVersion]: ...

    def hold(self, digest: str) -> None: ...

    def release(self, digest: str) -> None: ...

    def holders(self, digest: str) -> int: ...

    def folder(self, digest: str) -> Path: ...

    def sweep(self) -> SweepReport: ...

    def audit(
        self, caller: Caller, *, after: int = 0, limit: int = 100, subject: str | None = None
    ) -> Sequence[AuditEntry]: ...

    @property
    def tenants(self) -> Tenants: ...

    @property
    def keys(self) -> Keys: ...
