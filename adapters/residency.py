"""Where adapters are: on disk, on the host, on the device, each tier an LRU under a byte budget.

Reading and placing happen in a background thread; the engine only ever asks "is it there?". A lease keeps
an adapter in its tiers, so that what runs is never evicted. On the CPU the device tier is the host tier.
`pins.py` says which adapters are to stay on the device though nobody asks for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from adapters.batch.cuda.upload import Upload, Uploader, choose_uploader
from adapters.batch.placed import Placed
from adapters.delta import AdapterWeights
from adapters.errors import AdapterError, AdapterTooLarge
from adapters.pins import Pins
from adapters.tier import LoadedAdapter, Tier, TierName


class Residency:
    """The tiers above the disk. All methods may be called from any thread and return at once.

    Args:
        load: reads one adapter version from disk, in full. Runs in the background thread.
        place: puts it into computing form on the host. Runs in the background thread too.
        device: where the model runs.
        device_budget: bytes for adapters on the device; on the CPU, for adapters in memory at all.
        host_budget: bytes for adapters on the host when the device is a GPU.
        on_ready: called, from a background thread, when a load or a copy has ended well or badly.
        uploader: copies to the device; by default what suits it.
    """

    def __init__(
        self,
        load: Callable[[str], AdapterWeights],
        place: Callable[[AdapterWeights], Placed],
        device: torch.device,
        device_budget: int,
        host_budget: int,
        on_ready: Callable[[], None] = lambda: None,
        uploader: Uploader | None = None,
    ) -> None:
        self._load = load
        self._place = place
        self._uploader = uploader or choose_uploader(device)
        self._pins = Pins()
        self.device = Tier(device_budget, self._pins)
        self.host = self.device if device.type == "cpu" else Tier(host_budget)
        self.on_ready = on_ready
        self._lock = threading.RLock()
        self._loading: set[str] = set()
        self._failed: dict[str, AdapterError] = {}
        self._waiting: dict[str, Placed] = {}
        self._forgotten: set[str] = set()
        self._uploads: dict[str, Upload] = {}
        self._ranks: dict[str, int] = {}
        self._listed: tuple[tuple[int, ...], tuple[LoadedAdapter, ...]] = ((), ())
        self._closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="adapter-upload")
        self.loads = 0
        self.load_seconds = 0.0

    def prefetch(self, digest: str) -> None:
        """Begin to bring an adapter from disk to the host, unless it is there or on its way.

        While a loaded adapter waits for room nothing more is read: it could only wait as well.
        """
        with self._lock:
            self._forgotten.discard(digest)
            there = self.device.get(digest) or self.host.get(digest)
            if there or digest in self._loading or self._waiting:
                return
            self._failed.pop(digest, None)
            self._read(digest)

    def _read(self, digest: str) -> None:
        if not self._closed:
            self._loading.add(digest)
            self._pool.submit(self._bring, digest)

    def warm(self, digest: str) -> None:
        """`prefetch` for requests that are yet to come: it never waits for room and leaves no error."""
        with self._lock:
            if digest in self._loading:
                return
            self.prefetch(digest)
            if digest in self._loading:
                self._forgotten.add(digest)

    def pin(self, digests: Iterable[str]) -> None:
        """Have exactly these on the device, from when `tend` has brought them; the first ones get room first.

        They count in the budget and make room only for a request that could never run otherwise; `tend`
        brings them back a minute later. Those that don't fit beside the others are told of in the log.
        """
        with self._lock:
            self._pins.set(digests)
        self.on_ready()

    def tend(self) -> None:
        """Bring the next pinned adapter that is missing. Called often, by the thread that calls `acquire`."""
        with self._lock:
            try:
                for digest in [known for known in self._uploads if known in self._pins]:
                    self._arrived(digest)
                if self._pins.due() and not self._loading and not self._waiting:
                    digest = self._pins.next(self.device.items, self.device.unpinned) or ""
                    if digest:
                        self._bring_pin(digest)
            except AdapterError as error:
                self._pins.failed(digest, error)

    def _bring_pin(self, digest: str) -> None:
        staged = self.host.get(digest)
        if staged is None:
            self._read(digest)
            if digest in self._loading:
                self._forgotten.add(digest)  # no request waits for it
        elif self.device.make_room(staged.nbytes):
            self._to_device(digest)
        else:
            self._pins.no_room(digest)

    @property
    def pins(self) -> int:
        """How many adapters are pinned, in memory or not."""
        return len(self._pins)

    @property
    def lacks_pins(self) -> bool:
        """Whether `tend` may have something to do, now or later."""
        with self._lock:
            return bool(self._pins.missing(self.device.items))

    def loaded(self) -> tuple[LoadedAdapter, ...]:
        """Each adapter in memory once, in the fastest tier that has it; those that were used last come last.

        Mixtures, which have no name, are left out.
        """
        with self._lock:
            changes = self.device.changes, self.host.changes, self._pins.changes
            if self._listed[0] != changes:
                tiers: tuple[tuple[TierName, Tier], ...] = (("host", self.host), ("device", self.device))
                there = {digest: (name, item) for name, t in tiers for digest, item in t.items.items()}
                self._ranks = {digest: self._ranks.get(digest, 0) for digest in (*there, *self._waiting)}
                adapters = (
                    LoadedAdapter(digest, name, self._ranks[digest], digest in self._pins)
                    for digest, (name, item) in there.items()
                    if not item.members
                )
                self._listed = changes, tuple(adapters)
            return self._listed[1]

    def acquire(self, digest: str) -> Placed | None:
        """Lease an adapter on the device, or None while it is on its way or leased ones leave no room.

        Raises:
            AdapterError: it can't be loaded or copied; the reason names it. The next `acquire` tries again.
        """
        with self._lock:
            if digest in self._failed:
                raise self._failed.pop(digest)
            adapter = self.device.get(digest)
            if adapter is None:
                adapter = self._to_device(digest)
            if adapter is None or not self._arrived(digest):
                return None
            self.device.lease(digest)
            return adapter

    def _to_device(self, digest: str) -> Placed | None:
        staged = self.host.get(digest) or self._waiting.get(digest)
        if staged is None:
            self.prefetch(digest)
            return None
        if not self.device.make_room(staged.nbytes, asked=True):
            return None
        # Copies of what was evicted on its way: nobody waits for their end.
        self._uploads = {known: up for known, up in self._uploads.items() if known in self.device.items}
        self._waiting.pop(digest, None)
        adapter = staged if self.host is self.device else self._upload(staged)
        self.device.put(adapter)
        return adapter

    def _upload(self, staged: Placed) -> Placed:
        """It counts as on the device from now on, and stays for the `acquire` that finds it there."""
        try:
            upload = self._uploader.start(staged)
            if not upload.done():
                self._uploads[staged.digest] = upload
                self.device.arriving.add(staged.digest)
                self._watch.submit(self._announce, upload)
        except RuntimeError as error:
            raise _not_copied(staged.digest, error) from error
        return upload.adapter

    def _announce(self, upload: Upload) -> None:
        with suppress(RuntimeError):  # the next `acquire` tells
            upload.wait()
        self.on_ready()

    def _arrived(self, digest: str) -> bool:
        upload = self._uploads.get(digest)
        if upload is None:
            return True
        try:
            done = upload.done()
        except RuntimeError as error:
            del self._uploads[digest]
            self.device.remove(digest)
            raise _not_copied(digest, error) from error
        if done:
            del self._uploads[digest]
            self.device.arriving.discard(digest)
        return done

    def release(self, digest: str) -> None:
        """Give one lease back; the adapter stays until its room is needed."""
        with self._lock:
            self.device.release(digest)
            for waiting in list(self._waiting.values()):
                if self.host.put(waiting):
                    del self._waiting[waiting.digest]

    def forget(self, digest: str) -> None:
        """Nobody wants an adapter any more: if it waits for room, it must not keep others from being read.

        If it is being copied, it may make room for others.
        """
        with self._lock:
            self._waiting.pop(digest, None)
            self.device.arriving.discard(digest)
            if digest in self._loading:
                self._forgotten.add(digest)

    def lacks_room(self, digest: str) -> bool:
        """Whether an adapter is loaded and only waits for leased ones to make room."""
        with self._lock:
            return digest not in self.device.items and (digest in self._waiting or digest in self.host.items)

    def state(self, digest: str) -> str:
        """`device`, `host` or `disk`."""
        with self._lock:
            if digest in self.device.items:
                return "device"
            return "host" if digest in self.host.items else "disk"

    def evict(self, digest: str) -> bool:
        """Drop an adapter from memory, and mixtures that it is in, unless leased. True if nothing is left."""
        with self._lock:
            self._pins.remove(digest)
            tiers = {id(tier): tier.items for tier in (self.device, self.host)}.values()
            known = {key: adapter for items in (*tiers, self._waiting) for key, adapter in items.items()}
            mixtures = [key for key, adapter in known.items() if digest in adapter.members]
            left = [one for one in (digest, *mixtures) if not self._evict(one)]
            return not left

    def _evict(self, digest: str) -> bool:
        if self.device.leases.get(digest):
            return False
        for tier in {id(t): t for t in (self.device, self.host)}.values():
            if digest in tier.items:
                tier.remove(digest)
        self._waiting.pop(digest, None)
        self._uploads.pop(digest, None)
        return True

    def close(self) -> None:
        """Stop the background threads; a load or copy in progress ends first."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._watch.shutdown(wait=True, cancel_futures=True)

    def _bring(self, digest: str) -> None:
        started = time.perf_counter()
        error: AdapterError | None = None
        placed: Placed | None = None
        try:
            weights = self._load(digest)
            placed = self._place(weights)
            if placed.nbytes > min(self.device.budget, self.host.budget):
                raise AdapterTooLarge(
                    f"adapter {digest[:12]} takes {placed.nbytes / 2**20:.1f} MiB in memory, more than the "
                    f"whole budget of {self.device.budget / 2**20:.1f} MiB; raise --adapter-memory-gb"
                )
        except AdapterError as exc:
            error = exc
        except Exception as exc:  # whatever a broken file or a full memory raises must not end the loader
            error = AdapterError(f"adapter {digest[:12]} could not be loaded: {exc}")
        with self._lock:
            self._loading.discard(digest)
            self.load_seconds += time.perf_counter() - started
            if error is not None:
                self._pins.failed(digest, error)
                if digest not in self._forgotten:  # whoever comes later tries again, and is told then
                    self._failed[digest] = error
            elif placed is not None:
                self.loads += 1
                self._ranks[digest] = weights.max_rank
                self._pins.loaded(digest, placed.nbytes)
                if not self.host.put(placed):
                    self._pins.no_room(digest)
                    # With every byte leased it waits outside the tier for the next acquire that finds room.
                    if digest not in self._forgotten:
                        self._waiting = {digest: placed}
            self._forgotten.discard(digest)
        self.on_ready()


def _not_copied(digest: str, error: RuntimeError) -> AdapterError:
    return AdapterError(f"adapter {digest[:12]} could not be copied to the device: {error}")
