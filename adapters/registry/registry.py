"""The adapters of one base: published, named, routed, shared, deleted; durable, and safe from any thread.

    publish: copy -> check the copy in full -> blob under its digest -> row -> visible
    delete:  row marked -> invisible -> files removed when the last lease is returned

Reads by name come from memory and never wait for a disk or a database. This class only puts the parts
together; each lives in a module beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from adapters.base import BaseSpec
from adapters.blobs.blobs import Blobs
from adapters.checkpoint.variants.common import BaseWeights
from adapters.delta import AdapterWeights
from adapters.errors import AdapterNotFound
from adapters.limits import AdapterLimits
from adapters.registry.database import Database, sqlite_url
from adapters.registry.files import Files
from adapters.registry.identity import SQLITE_FILE, DataDir
from adapters.registry.names import DEFAULT_ALIAS
from adapters.registry.parts import Parts
from adapters.registry.proof import Proof, Prove, prove_nothing
from adapters.registry.publisher import Upload
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
from adapters.registry.sweep import sweep

_NO_LINEAGE = Lineage()


class Registry:
    """The adapters of one base in one database, with their files in a data directory of this process.

    Versions that were published for another base stay there, unseen. Every call by name takes the caller:
    what that one may not see raises `AdapterNotFound`, and a change of what it sees but does not own
    `AdapterForbidden`. A change raises `RegistryUnavailable` while the database is away; reads go on.

    Args:
        data_dir: made if it does not exist.
        base: what adapters are checked against; only versions of its digest are visible.
        dtype: what they are computed in; values too large for it are refused. None: as they are stored.
        base_weights: the base's parameters, which some variants need; without them these are refused.
        database_url: of a Postgres database that replicas share; None: SQLite in `data_dir`.
        blobs: where the files are; None: in `data_dir` alone. Closed with the registry.

    Attributes:
        on_unused: called with a digest whose files are gone, since no version has it and nobody holds it.
        on_change: called, from any thread, after something that is read here was changed, by us or by others.
        prove: called before an adapter is published; what it says is kept with the version.
        tenants, keys, database, replica: who may do what; where all is kept, and this server's name in it.

    Raises:
        AdapterConflict: another process uses `data_dir`, or it belongs to another database, or a newer
            release wrote that.
        RegistryUnavailable: the database can't be reached.
    """

    def __init__(
        self,
        data_dir: Path,
        base: BaseSpec,
        limits: AdapterLimits,
        dtype: torch.dtype | None = None,
        base_weights: BaseWeights | None = None,
        *,
        database_url: str | None = None,
        blobs: Blobs | None = None,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.prove: Prove = prove_nothing
        with ExitStack() as opened:
            place = DataDir(data_dir)
            opened.callback(place.close)
            self.database = Database(database_url or sqlite_url(data_dir / SQLITE_FILE))
            opened.callback(self.database.close)
            place.bind(self.database.identity, is_inside=database_url is None)
            self._blobs = Blobs(data_dir) if blobs is None else blobs
            opened.callback(self._blobs.close)
            files = Files(base, limits, dtype, base_weights)
            self._parts = parts = Parts(
                place, self.database, self._blobs, files, base, limits, self._prove, self._changed
            )
            opened.callback(parts.sync.stop)
            parts.start()
            self._opened = opened.pop_all()
        self._snapshot, self._keeper = parts.snapshot, parts.keeper
        self.tenants, self.keys, self.replica = parts.tenants, parts.keys, place.replica

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the data directory back. What was published stays."""
        self._opened.close()

    @property
    def on_unused(self) -> Callable[[str], None]:
        return self._keeper.on_unused

    @on_unused.setter
    def on_unused(self, call: Callable[[str], None]) -> None:
        self._keeper.on_unused = call

    def _prove(self, folder: Path, adapter: AdapterWeights) -> Proof:
        return self.prove(folder, adapter)

    def _changed(self) -> None:
        self._parts.keeper.clear(self._parts.snapshot.take_loose())
        self.on_change()

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
        lineage: Lineage = _NO_LINEAGE,
        promote: Promote = "auto",
        digest: str | None = None,
    ) -> tuple[AdapterVersion, bool]:
        """Check an adapter in full and make it the newest version of `name`.

        Args:
            name, config, weights, source, labels, quantization, lineage, digest: as in `Upload`.
            promote: whether the alias `default` moves to it. The first version of a name always gets it.

        Returns:
            The version, and whether it is new: the content that is the newest already is not published twice,
            unless it is told now what it was trained on, or where it comes from.

        Raises:
            InvalidName, InvalidAdapter, AdapterTooLarge: it can't be served under this name on this base.
            QuotaExceeded: the tenant has as much as it may have.
            AdapterConflict: the registry is full.
            ProofUnavailable: only proved adapters are taken, and the proof could not be made.
        """
        upload = Upload(name, config, weights, source, labels, quantization, lineage, promote, digest)
        return self._parts.publisher.publish(upload, caller)

    def publish_folder(
        self,
        name: str,
        folder: Path,
        source: str = "",
        *,
        caller: Caller = LOCAL,
        promote: Promote = "auto",
    ) -> tuple[AdapterVersion, bool]:
        """`publish` the two files of a folder that PEFT saved.

        The labels are those of `labels.json` there, or else of a `config.json` with `id2label`; where it
        comes from may be in `lineage.json`.
        """
        return self._parts.publisher.publish_folder(name, folder, source, promote, caller)

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
        lineage: Lineage = _NO_LINEAGE,
        promote: Promote = "auto",
        digest: str | None = None,
    ) -> AdapterVersion:
        """Keep the files, and give them a number, in state `uploaded`; `finish` checks them.

        Where `digest` says that the newest version has this content already, it is that version.

        Args and Raises: as `publish`, but that nothing is said yet of what is in the files.
        """
        upload = Upload(name, config, weights, source, labels, quantization, lineage, promote, digest)
        return self._parts.pending.begin(upload, caller)

    def finish(self, version: AdapterVersion) -> AdapterVersion:
        """Check what `begin` took; the version, now `ready`, or `refused` with the reason.

        Raises `AdapterNotFound` if it was deleted meanwhile; `ProofUnavailable` or `RegistryUnavailable` if
        it is to be finished later.
        """
        return self._parts.pending.finish(version)

    def unfinished(self) -> tuple[AdapterVersion, ...]:
        """What this server took and has not checked yet; after a crash, finish these."""
        return self._parts.unfinished()

    def route(self, ref: str, caller: Caller = LOCAL, key: str | None = None) -> Route:
        """What `name`, `name@3` or `name@alias` means for one request; `key`: always the same for one key.

        Raises:
            AdapterNotFound: there is none on this base that answers, or the caller may not see it.
        """
        return self._snapshot.route(ref, caller, key)

    def resolve(self, ref: str, caller: Caller = LOCAL) -> AdapterVersion:
        """The version of `route`."""
        return self._snapshot.route(ref, caller, None).version

    def find(self, ref: str, caller: Caller = LOCAL) -> AdapterVersion:
        """A version of any state, for showing; without an alias, the newest of its name."""
        return self._parts.inquiry.find(ref, caller)

    def list(self, caller: Caller = LOCAL) -> tuple[AdapterVersion, ...]:
        """Every version that answers and that the caller may see, by tenant, name and version."""
        return self._snapshot.all(caller)

    def history(self, caller: Caller = LOCAL) -> tuple[AdapterVersion, ...]:
        """The same of any state, tombstones too."""
        return self._parts.inquiry.history(caller)

    def versions(self, name: str, caller: Caller = LOCAL) -> tuple[AdapterVersion, ...]:
        """Those of `name` that answer, oldest first; none if there is no such name."""
        try:
            return self._snapshot.versions(self._snapshot.adapter(name, caller))
        except AdapterNotFound:
            return ()

    def lineage(self, ref: str, caller: Caller = LOCAL) -> tuple[AdapterVersion, ...]:
        """The version, what its training started from, and so on, as far as it is known and visible."""
        return self._parts.inquiry.lineage(ref, caller)

    def audit(
        self, caller: Caller = LOCAL, *, after: int = 0, limit: int = 100, subject: str | None = None
    ) -> tuple[AuditEntry, ...]:
        """Changes since entry `after`, oldest first: all for an operator, else those of the tenant."""
        return self._parts.inquiry.audit(caller, after, limit, subject)

    def wanted(self) -> tuple[AdapterVersion, ...]:
        """Those that are to be in memory by themselves; see `want`."""
        return tuple(version for version in self._snapshot.all(LOCAL) if version.desired)

    def aliases(self, name: str, caller: Caller = LOCAL) -> tuple[Alias, ...]:
        """Those of one adapter, by name."""
        return self._snapshot.aliases(self._snapshot.adapter(name, caller))

    def alias_history(self, name: str, alias: str, caller: Caller = LOCAL) -> tuple[Alias, ...]:
        """What an alias meant, newest first; without targets: it was removed."""
        return self._parts.moves.history(name, alias, caller)

    def set_alias(
        self,
        name: str,
        alias: str,
        targets: Sequence[Target],
        *,
        shadow: int | None = None,
        expected: int | None = None,
        caller: Caller = LOCAL,
    ) -> Alias:
        """Set what an alias means, and make it if it is not there.

        Args:
            expected: here and below: the revision that it must be at; 0: it must not exist. None: any.

        Raises:
            AdapterConflict: it is at another revision.
            InvalidName, InvalidAlias: it can't be called so, or mean this.
            AdapterNotFound: a target is no version that answers.
        """
        return self._parts.moves.set(name, alias, targets, shadow, expected, caller)

    def remove_alias(
        self, name: str, alias: str, *, expected: int | None = None, caller: Caller = LOCAL
    ) -> None:
        """Raises `AdapterConflict` for `default`, and for one at another revision."""
        self._parts.moves.remove(name, alias, expected, caller)

    def promote(
        self, ref: str, alias: str = DEFAULT_ALIAS, *, expected: int | None = None, caller: Caller = LOCAL
    ) -> Alias:
        """Have an alias mean the one version that `ref` means; a canary and a shadow of it end."""
        return self._parts.moves.promote(ref, alias, expected, caller)

    def rollback(
        self, name: str, alias: str = DEFAULT_ALIAS, *, expected: int | None = None, caller: Caller = LOCAL
    ) -> Alias:
        """Set what an alias meant before its last change; done again, what it meant before that.

        Raises `AdapterConflict` where there is nothing before, or that is deleted.
        """
        return self._parts.moves.rollback(name, alias, expected, caller)

    def canary(
        self,
        ref: str,
        percent: int,
        alias: str = DEFAULT_ALIAS,
        *,
        expected: int | None = None,
        caller: Caller = LOCAL,
    ) -> Alias:
        """Give a version `percent` of an alias's requests; what it meant before shares the rest."""
        return self._parts.moves.canary(ref, percent, alias, expected, caller)

    def deprecate(self, ref: str, reason: str | None, *, caller: Caller = LOCAL) -> AdapterVersion:
        """A version goes on answering, marked; `reason` None: it is ready again."""
        return self._parts.life.deprecate(ref, reason, caller)

    def want(self, ref: str, desired: Desired, *, caller: Caller = LOCAL) -> AdapterVersion:
        """What servers keep in memory by themselves, also after a restart."""
        return self._parts.life.want(ref, desired, caller)

    def delete(self, ref: str, *, caller: Caller = LOCAL, force: bool = False) -> tuple[AdapterVersion, ...]:
        """Delete one version (`name@3`), or all of `name`, on this base; returns those deleted.

        Who holds one of them may go on using it. Its number is never given again.

        Args:
            force: though an alias means it (for a whole name: one besides `default`). Aliases lose what is
                deleted; `default` falls back on the newest version that is left.

        Raises:
            AdapterConflict: an alias means it.
        """
        return self._parts.life.delete(ref, caller, force)

    def share(self, name: str, tenant: str, *, caller: Caller = LOCAL) -> None:
        """Let another tenant use an adapter, or with `*` every tenant."""
        self._parts.life.share(name, tenant, caller, True)

    def unshare(self, name: str, tenant: str, *, caller: Caller = LOCAL) -> None:
        """Take that back; requests that run finish."""
        self._parts.life.share(name, tenant, caller, False)

    def shares(self, name: str, caller: Caller = LOCAL) -> tuple[str, ...]:
        """With whom it is shared. Only its owner is told."""
        return self._snapshot.shares(self._snapshot.owned_adapter(name, caller))

    def hold(self, digest: str) -> None:
        """Keep the files of `digest` until as many `release` calls, whatever is deleted meanwhile.

        Raises `AdapterNotFound` where no live version has this digest, and nobody holds it.
        """
        self._snapshot.hold(digest)

    def release(self, digest: str) -> None:
        """Give back one `hold`."""
        self._keeper.release(digest)

    def holders(self, digest: str) -> int:
        """How many holds of a digest were not given back yet."""
        return self._snapshot.holders(digest)

    def folder(self, digest: str) -> Path:
        """The files of a held digest, fetched from the shared store if they are not here.

        Raises:
            AdapterNotFound: there are none.
            InvalidAdapter: the stored ones are damaged.
            RegistryUnavailable: the store does not answer.
        """
        return self._blobs.fetch(digest)

    def load(self, digest: str, dtype: torch.dtype | None = None) -> AdapterWeights:
        """Read an adapter's weights, checked again in full; hold it, or it may be deleted meanwhile.

        Raises:
            AdapterNotFound: there are no files for this digest.
            InvalidAdapter: the files are damaged, or their values do not fit `dtype`.
            RegistryUnavailable: the store does not answer.
        """
        return self._parts.files.load(self._blobs.fetch(digest), digest, dtype)

    def sweep(self) -> SweepReport:
        """Read every blob and set aside what does not match its digest; remove what nothing needs."""
        self._parts.sync.catch_up()
        return sweep(self.database, self._blobs, self._snapshot, self._keeper, self._parts.files)
