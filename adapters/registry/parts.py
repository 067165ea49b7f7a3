"""Puts the parts of a registry together."""

from __future__ import annotations

from collections.abc import Callable

from adapters.base import BaseSpec
from adapters.blobs.blobs import Blobs
from adapters.limits import AdapterLimits
from adapters.registry.aliases import Aliases
from adapters.registry.database import Database
from adapters.registry.files import Files
from adapters.registry.identity import DataDir
from adapters.registry.inquiry import Inquiry
from adapters.registry.keeping import Keeper
from adapters.registry.keys import Keys
from adapters.registry.life import Life
from adapters.registry.moves import Moves
from adapters.registry.pending import Pending
from adapters.registry.proof import Prove
from adapters.registry.publisher import Publisher
from adapters.registry.records import AdapterVersion
from adapters.registry.snapshot import Snapshot
from adapters.registry.sync import Sync
from adapters.registry.tenants import Tenants


class Parts:
    """What `Registry` hands its calls to.

    Args:
        changed: called after something in memory was changed, by us or by another replica.
    """

    def __init__(
        self,
        data_dir: DataDir,
        database: Database,
        blobs: Blobs,
        files: Files,
        base: BaseSpec,
        limits: AdapterLimits,
        prove: Prove,
        changed: Callable[[], None],
    ) -> None:
        self._replica, self._blobs = data_dir.replica, blobs
        self.database, self.files = database, files
        self.snapshot = Snapshot(base.digest)
        self.tenants = Tenants(database, self._catch_up)
        self.keys = Keys(database, self._catch_up)
        self.sync = Sync(database, (self.snapshot, self.tenants, self.keys), changed)
        self.keeper = Keeper(blobs, self.snapshot, files)
        aliases = Aliases(base.digest)
        self.inquiry = Inquiry(database, self.snapshot, base)
        self.moves = Moves(database, self.snapshot, aliases, self._catch_up)
        self.life = Life(database, self.snapshot, aliases, base, self._catch_up)
        self.publisher = Publisher(
            database, blobs, self.keeper, files, aliases, base, limits, prove, self._catch_up
        )
        folder = data_dir.path / "pending"
        self.pending = Pending(folder, self._replica, database, self.keeper, self.publisher, self.sync)

    def start(self) -> None:
        """Read what there is, and put in order what a crash left."""
        self._blobs.in_use = self.snapshot.is_held
        self.sync.start()
        self.keeper.clear(set(self._blobs.digests()))
        self._blobs.upload_missing(self.snapshot.needed())
        self.pending.recover(self.unfinished())

    def unfinished(self) -> tuple[AdapterVersion, ...]:
        """What this server took and has not checked yet."""
        return self.snapshot.unfinished(self._replica)

    def _catch_up(self) -> None:
        self.sync.catch_up()
