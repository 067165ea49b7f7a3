"""Residencies with room for a few tiny adapters, and a disk that can be held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from adapters.batch.cuda.upload import Upload, Uploader
from adapters.batch.placed import Placed, place
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.residency import Residency

CPU = torch.device("cpu")
META = torch.device("meta")
SIZE = 4 * (4 + 4)  # bytes of an adapter of rank 1 on a 4 by 4 layer


def weights_of(digest: str) -> AdapterWeights:
    """Rank 1, or as many as the digit at the end of the digest says."""
    rank = int(digest[-1]) if digest[-1].isdigit() else 1
    return AdapterWeights(digest, {"m": ModuleDelta(torch.ones(rank, 4), torch.ones(4, rank), 1.0)})


def place_one(weights: AdapterWeights) -> Placed:
    return place(weights, [("m",)], torch.float32)


class Disk:
    """Counts reads, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.broken: dict[str, Exception] = {}

    def __call__(self, digest: str) -> AdapterWeights:
        self.reads.append(digest)
        assert self.open.wait(20)
        if digest in self.broken:
            raise self.broken[digest]
        return weights_of(digest)


@contextmanager
def residency_of(
    adapters: float,
    disk: Disk | None = None,
    device: torch.device = CPU,
    host: float = 100,
    uploader: Uploader | None = None,
) -> Iterator[Residency]:
    """A residency with room for so many adapters of rank 1."""
    residency = Residency(
        disk or Disk(), place_one, device, int(adapters * SIZE), int(host * SIZE), uploader=uploader
    )
    try:
        yield residency
    finally:
        residency.close()


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "it never comes"
        time.sleep(0.001)


def settle(residency: Residency) -> None:
    until(lambda: not residency._loading)


def lease(residency: Residency, digest: str) -> Placed:
    got: list[Placed] = []

    def tried() -> bool:
        adapter = residency.acquire(digest)
        got.extend([adapter] if adapter else [])
        return bool(got)

    until(tried)
    return got[0]


class FakeEvent:
    """Reached when a test says so."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.error: RuntimeError | None = None

    def query(self) -> bool:
        if self.error:
            raise self.error
        return self.reached.is_set()

    def synchronize(self) -> None:
        assert self.reached.wait(20)
        self.query()


class SlowUploader(Uploader):
    """Copies that take until their event is reached."""

    def __init__(self) -> None:
        super().__init__(META)
        self.events: dict[str, FakeEvent] = {}
        self.full = False

    def start(self, adapter: Placed) -> Upload:
        if self.full:
            raise RuntimeError("out of memory")
        self.events[adapter.digest] = FakeEvent()
        return Upload(adapter.to(META), self.events[adapter.digest])


@contextmanager
def uploads(adapters: float, *digests: str) -> Iterator[tuple[Residency, SlowUploader]]:
    """A residency with these adapters on the host."""
    uploader = SlowUploader()
    with residency_of(adapters, device=META, uploader=uploader) as residency:
        for digest in digests:
            residency.prefetch(digest)
            settle(residency)
        yield residency, uploader
        for event in uploader.events.values():
            event.reached.set()
