"""Tiers under a byte budget: leases hold, the least recently used goes, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from adapters.batch.cuda.upload import Upload, Uploader
from adapters.batch.placed import Placed, place
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter
from adapters.residency import Residency

CPU = torch.device("cpu")
META = torch.device("meta")
SIZE = 4 * (4 + 4)  # bytes of an adapter of rank 1 on a 4 by 4 layer


def _weights(digest: str) -> AdapterWeights:
    """Rank 1, or as many as the digit at the end of the digest says."""
    rank = int(digest[-1]) if digest[-1].isdigit() else 1
    return AdapterWeights(digest, {"m": ModuleDelta(torch.ones(rank, 4), torch.ones(4, rank), 1.0)})


def _place(weights: AdapterWeights) -> Placed:
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
        return _weights(digest)


@contextmanager
def _residency(
    adapters: float,
    disk: Disk | None = None,
    device: torch.device = CPU,
    host: float = 100,
    uploader: Uploader | None = None,
) -> Iterator[Residency]:
    """A residency with room for so many adapters of rank 1."""
    residency = Residency(
        disk or Disk(), _place, device, int(adapters * SIZE), int(host * SIZE), uploader=uploader
    )
    try:
        yield residency
    finally:
        residency.close()


def _until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "it never comes"
        time.sleep(0.001)


def _settle(residency: Residency) -> None:
    _until(lambda: not residency._loading)


def _lease(residency: Residency, digest: str) -> Placed:
    got: list[Placed] = []

    def tried() -> bool:
        adapter = residency.acquire(digest)
        got.extend([adapter] if adapter else [])
        return bool(got)

    _until(tried)
    return got[0]


def test_loads_in_the_background_and_leases() -> None:
    disk = Disk()
    with _residency(2, disk) as residency:
        disk.open.clear()
        started = time.monotonic()
        assert residency.acquire("a") is None
        assert residency.acquire("a") is None
        assert time.monotonic() - started < 1
        assert residency.state("a") == "disk"
        disk.open.set()
        adapter = _lease(residency, "a")
        assert adapter.digest == "a"
        assert residency.state("a") == "device"
        assert residency.acquire("a") is adapter
        assert residency.device.leases == {"a": 2}
        assert disk.reads == ["a"]
        assert residency.loads == 1


def test_more_adapters_than_fit_come_and_go() -> None:
    disk = Disk()
    with _residency(2, disk) as residency:
        for digest in "abcabc":
            assert _lease(residency, digest).digest == digest
            residency.release(digest)
            assert residency.device.bytes <= residency.device.budget
        assert disk.reads == [*"abcabc"]
        assert residency.device.evictions == 4


def test_a_loaded_adapter_waits_for_leased_ones_and_then_gets_their_room() -> None:
    with _residency(1) as residency:
        _lease(residency, "a")
        residency.prefetch("b")
        _settle(residency)
        assert residency.acquire("b") is None
        assert residency.lacks_room("b")
        assert residency.state("b") == "disk"
        assert residency.device.bytes == SIZE
        residency.release("a")
        assert residency.acquire("b") is not None
        assert residency.state("a") == "disk"


def test_one_that_nobody_wants_any_more_does_not_bar_the_way() -> None:
    """The request for `b` went away while `a` is leased without a pause; `c` must still be read."""
    disk = Disk()
    with _residency(1, disk) as residency:
        _lease(residency, "a")
        residency.prefetch("b")
        _settle(residency)
        residency.forget("b")
        assert not residency.lacks_room("b")
        residency.prefetch("c")
        _settle(residency)
        assert disk.reads == [*"abc"]
        assert residency.lacks_room("c")


def test_an_adapter_larger_than_the_whole_budget_is_an_error_that_says_so() -> None:
    with _residency(2) as residency:
        residency.prefetch("big3")
        _settle(residency)
        with pytest.raises(AdapterTooLarge, match="--adapter-memory-gb"):
            residency.acquire("big3")
        assert residency.device.bytes == 0


@pytest.mark.parametrize(
    ("raised", "expected"), [(InvalidAdapter("bad"), "^bad$"), (OSError("gone"), "could not be loaded: gone")]
)
def test_a_failed_load_is_told_once_and_then_tried_again(raised: Exception, expected: str) -> None:
    disk = Disk()
    disk.broken["a"] = raised
    with _residency(2, disk) as residency:
        residency.prefetch("a")
        _settle(residency)
        with pytest.raises(AdapterError, match=expected):
            residency.acquire("a")
        disk.broken.clear()
        assert _lease(residency, "a").digest == "a"


def test_a_new_request_does_not_get_an_old_failure() -> None:
    disk = Disk()
    disk.broken["a"] = InvalidAdapter("bad")
    with _residency(2, disk) as residency:
        residency.prefetch("a")
        _settle(residency)
        disk.broken.clear()
        residency.prefetch("a")
        assert _lease(residency, "a").digest == "a"


def test_every_load_is_announced_however_it_ends() -> None:
    disk = Disk()
    disk.broken["b"] = InvalidAdapter("bad")
    calls: list[int] = []
    with _residency(2, disk) as residency:
        residency.on_ready = lambda: calls.append(1)
        for digest in "ab":
            residency.prefetch(digest)
        _until(lambda: len(calls) == 2)


def test_evict_drops_all_but_the_leased() -> None:
    with _residency(2) as residency:
        _lease(residency, "a")
        assert not residency.evict("a")
        assert residency.state("a") == "device"
        residency.release("a")
        assert residency.evict("a")
        assert residency.state("a") == "disk"
        assert residency.device.bytes == 0
        assert residency.evict("never seen")


def test_two_tiers_keep_more_on_the_host_than_on_the_device() -> None:
    disk = Disk()
    with _residency(1, disk, torch.device("meta"), host=2) as residency:
        for digest in "ab":
            assert next(_lease(residency, digest).tensors()).device.type == "meta"
            residency.release(digest)
        assert [residency.state(digest) for digest in "ab"] == ["host", "device"]
        _lease(residency, "a")
        assert disk.reads == [*"ab"]  # it came from the host
        residency.release("a")
        assert residency.evict("a")
        assert residency.state("a") == "disk"


def test_what_is_on_the_device_is_not_read_again() -> None:
    disk = Disk()
    with _residency(3, disk, torch.device("meta"), host=1) as residency:
        for digest in "abc":
            _lease(residency, digest)
        assert [residency.state(digest) for digest in "abc"] == ["device"] * 3
        for digest in "abc":
            residency.prefetch(digest)
        _settle(residency)
        assert disk.reads == [*"abc"]


def test_any_interleaving_from_many_threads_keeps_the_books() -> None:
    disk = Disk()
    with _residency(2, disk) as residency:
        failures: list[Exception] = []

        def work(offset: int) -> None:
            try:
                for turn in range(40):
                    digest = "abcde"[(turn * 3 + offset) % 5]
                    adapter = residency.acquire(digest)
                    if adapter is not None:
                        assert adapter.digest == digest
                        assert residency.device.items[digest] is adapter
                        residency.release(digest)
                    residency.evict("abcde"[turn % 5])
                    time.sleep(0.0003)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        _settle(residency)
        assert residency.device.leases == {}
        assert residency.device.bytes == sum(a.nbytes for a in residency.device.items.values())
        assert residency.device.bytes <= residency.device.budget


def test_one_forgotten_while_it_is_read_does_not_wait_either() -> None:
    disk = Disk()
    with _residency(1, disk) as residency:
        _lease(residency, "a")
        disk.open.clear()
        residency.prefetch("b")
        residency.forget("b")
        disk.open.set()
        _settle(residency)
        assert not residency.lacks_room("b")
        disk.open.clear()
        residency.prefetch("c")
        residency.forget("c")
        residency.prefetch("c")  # wanted again after all
        disk.open.set()
        _settle(residency)
        assert residency.lacks_room("c")


def test_warming_loads_but_neither_waits_for_room_nor_leaves_an_error() -> None:
    disk = Disk()
    disk.broken["bad"] = InvalidAdapter("bad")
    with _residency(1, disk) as residency:
        for digest in ("bad", "a"):
            residency.warm(digest)
            _settle(residency)
        assert residency.state("a") == "device"
        disk.broken.clear()
        assert _lease(residency, "bad").digest == "bad"
        residency.warm("b")
        _settle(residency)
        assert not residency.lacks_room("b")
        assert residency.state("bad") == "device"


def test_warming_what_a_request_waits_for_takes_nothing_from_it() -> None:
    disk = Disk()
    with _residency(1, disk) as residency:
        _lease(residency, "a")
        disk.open.clear()
        residency.prefetch("b")
        residency.warm("b")  # while it is read
        disk.open.set()
        _settle(residency)
        residency.warm("b")  # while it waits for room
        assert residency.lacks_room("b")


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
def _uploads(adapters: float, *digests: str) -> Iterator[tuple[Residency, SlowUploader]]:
    """A residency with these adapters on the host."""
    uploader = SlowUploader()
    with _residency(adapters, device=META, uploader=uploader) as residency:
        for digest in digests:
            residency.prefetch(digest)
            _settle(residency)
        yield residency, uploader
        for event in uploader.events.values():
            event.reached.set()


def test_an_adapter_is_leased_only_when_its_copy_is_done() -> None:
    with _uploads(1, "a") as (residency, uploader):
        told = threading.Event()
        residency.on_ready = told.set
        assert residency.acquire("a") is None
        assert residency.acquire("a") is None
        assert not residency.device.leases
        assert not residency.lacks_room("a")
        assert not told.is_set()
        uploader.events["a"].reached.set()
        assert told.wait(20)
        adapter = residency.acquire("a")
        assert adapter is not None
        assert next(adapter.tensors()).device == META
        assert residency.device.leases == {"a": 1}
        assert len(uploader.events) == 1


def test_an_adapter_on_its_way_stays_for_whoever_waits() -> None:
    """Two that take each other's room in turns would never arrive."""
    with _uploads(1, "a", "b") as (residency, uploader):
        assert residency.acquire("a") is None
        assert residency.acquire("b") is None
        assert residency.lacks_room("b")
        uploader.events["a"].reached.set()
        assert residency.acquire("b") is None
        assert residency.acquire("a") is not None
        residency.release("a")
        assert residency.acquire("b") is None
        assert [*residency.device.items] == ["b"]


def test_one_that_nobody_waits_for_any_more_gives_its_room() -> None:
    with _uploads(1, "a", "b") as (residency, uploader):
        assert residency.acquire("a") is None
        residency.forget("a")
        assert residency.acquire("b") is None
        assert [*residency.device.items] == ["b"]
        uploader.events["a"].reached.set()  # the copy that was given up
        assert residency.acquire("a") is None
        uploader.events["b"].reached.set()
        assert residency.acquire("b") is not None


def test_one_that_was_evicted_on_its_way_is_copied_anew() -> None:
    with _uploads(1, "a") as (residency, uploader):
        assert residency.acquire("a") is None
        first = uploader.events["a"]
        assert residency.evict("a")
        assert residency.device.bytes == 0
        first.reached.set()
        _until(lambda: residency.acquire("a") is None and uploader.events["a"] is not first)
        uploader.events["a"].reached.set()
        assert residency.acquire("a") is not None


def test_a_copy_that_fails_is_told_and_tried_again() -> None:
    with _uploads(1, "a") as (residency, uploader):
        uploader.full = True
        with pytest.raises(AdapterError, match="a could not be copied to the device: out of memory"):
            residency.acquire("a")
        uploader.full = False
        assert residency.acquire("a") is None
        uploader.events["a"].error = RuntimeError("device lost")
        with pytest.raises(AdapterError, match="device lost"):
            residency.acquire("a")
        assert residency.device.bytes == 0
        uploader.events["a"].reached.set()
        assert residency.acquire("a") is None
        uploader.events["a"].reached.set()
        assert residency.acquire("a") is not None


def _tend(residency: Residency, done: Callable[[], object]) -> None:
    def tended() -> object:
        residency.tend()
        return done()

    _until(tended)


def _there(residency: Residency) -> set[str]:
    return {adapter.digest for adapter in residency.loaded() if adapter.pinned and adapter.tier == "device"}


def test_pins_are_brought_and_stay() -> None:
    disk = Disk()
    with _residency(3, disk) as residency:
        residency.pin("ab")
        lacked = residency.lacks_pins
        _tend(residency, lambda: _there(residency) == {*"ab"})
        assert (lacked, residency.lacks_pins) == (True, False)
        for digest in "cde":
            _lease(residency, digest)
            residency.release(digest)
        assert _there(residency) == {*"ab"}
        assert residency.state("e") == "device"
        assert disk.reads == [*"abcde"]
        residency.pin("e")
        assert residency.pins == 1
        _lease(residency, "f")
        assert residency.state("e") == "device"


def test_pins_take_the_room_of_what_nobody_holds() -> None:
    with _residency(2) as residency:
        for digest in "xy":
            _lease(residency, digest)
        residency.release("x")
        residency.pin("ab")
        _tend(residency, lambda: _there(residency) == {"a"})
        for _ in range(20):
            residency.tend()
        assert residency.state("y") == "device"
        assert residency.device.leases == {"y": 1}


def test_more_pins_than_room_are_told_and_block_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    with _residency(2, disk) as residency:
        clock = [0.0]
        monkeypatch.setattr(residency._pins, "_clock", lambda: clock[0])
        residency.pin(["a", "b", "c"])
        _tend(
            residency, lambda: _there(residency) == {*"ab"} and "c" in disk.reads and not residency._loading
        )
        for _ in range(10):
            clock[0] += 100
            residency.tend()
        assert disk.reads == [*"abc"]  # it is known that there is no room for it
        assert "pinned adapter c has no room" in caplog.text
        _lease(residency, "x")
        assert _there(residency) == {"b"}
        assert "pinned adapter a made room" in caplog.text
        assert residency.acquire("c") is None  # `b` stays: `x` can make room, when it is let go
        residency.release("x")
        _lease(residency, "c")
        assert _there(residency) == {*"bc"}


def test_a_pin_that_made_room_comes_back_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with _residency(2) as residency:
        clock = [0.0]
        monkeypatch.setattr(residency._pins, "_clock", lambda: clock[0])
        residency.pin("ab")
        _tend(residency, lambda: _there(residency) == {*"ab"})
        _lease(residency, "x")
        residency.release("x")
        for _ in range(10):
            residency.tend()
        _settle(residency)
        assert residency.state("a") == "disk"
        clock[0] += 60
        _tend(residency, lambda: _there(residency) == {*"ab"})
        assert residency.state("x") == "disk"


def test_a_pin_that_can_not_be_read_leaves_the_way_to_others(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.broken["bad"] = InvalidAdapter("bad is damaged")
    with _residency(2, disk) as residency:
        residency.pin(["bad", "a"])
        _tend(residency, lambda: _there(residency) == {"a"})
        assert "pinned adapter bad is not in memory: bad is damaged" in caplog.text
        with pytest.raises(InvalidAdapter):
            _lease(residency, "bad")
        assert residency.evict("bad")
        assert residency.pins == 1


def test_pins_on_a_device_of_its_own_are_copied_there() -> None:
    with _uploads(2, "a", "x") as (residency, uploader):
        residency.pin(["a", "b"])
        _tend(residency, lambda: {*uploader.events} == {"a", "b"})
        assert residency.device.arriving == {"a", "b"}
        for event in uploader.events.values():
            event.reached.set()
        _tend(residency, lambda: not residency.device.arriving)
        assert _there(residency) == {"a", "b"}
        _until(lambda: residency.acquire("x") is None and "x" in uploader.events)  # they make room for it
        uploader.events["x"].reached.set()
        assert residency.acquire("x") is not None
        assert _there(residency) == {"b"}


def test_what_is_in_memory_is_listed_once_with_its_rank() -> None:
    with _residency(2, device=META) as residency:
        residency.pin(["b3"])
        for digest in ("a2", "c"):
            residency.prefetch(digest)
            _settle(residency)
        assert residency.acquire("a2") is not None
        listed = {adapter.digest: (adapter.tier, adapter.rank) for adapter in residency.loaded()}
        assert listed == {"a2": ("device", 2), "c": ("host", 1)}
        assert residency.loaded() is residency.loaded()


def test_nothing_is_read_once_it_is_closed() -> None:
    disk = Disk()
    with _residency(2, disk) as residency:
        residency.close()
        residency.prefetch("a")
        residency.warm("b")
        residency.pin("c")
        residency.tend()
    assert disk.reads == []
