"""Tiers under a byte budget: leases hold, the least recently used goes, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter
from tests.adapters.tiers import SIZE, Disk, lease, residency_of, settle, until


def test_loads_in_the_background_and_leases() -> None:
    disk = Disk()
    with residency_of(2, disk) as residency:
        disk.open.clear()
        started = time.monotonic()
        assert residency.acquire("a") is None
        assert residency.acquire("a") is None
        assert time.monotonic() - started < 1
        assert residency.state("a") == "disk"
        disk.open.set()
        adapter = lease(residency, "a")
        assert adapter.digest == "a"
        assert residency.state("a") == "device"
        assert residency.acquire("a") is adapter
        assert residency.device.leases == {"a": 2}
        assert disk.reads == ["a"]
        assert residency.loads == 1


def test_more_adapters_than_fit_come_and_go() -> None:
    disk = Disk()
    with residency_of(2, disk) as residency:
        for digest in "abcabc":
            assert lease(residency, digest).digest == digest
            residency.release(digest)
            assert residency.device.bytes <= residency.device.budget
        assert disk.reads == [*"abcabc"]
        assert residency.device.evictions == 4


def test_a_loaded_adapter_waits_for_leased_ones_and_then_gets_their_room() -> None:
    with residency_of(1) as residency:
        lease(residency, "a")
        residency.prefetch("b")
        settle(residency)
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
    with residency_of(1, disk) as residency:
        lease(residency, "a")
        residency.prefetch("b")
        settle(residency)
        residency.forget("b")
        assert not residency.lacks_room("b")
        residency.prefetch("c")
        settle(residency)
        assert disk.reads == [*"abc"]
        assert residency.lacks_room("c")


def test_an_adapter_larger_than_the_whole_budget_is_an_error_that_says_so() -> None:
    with residency_of(2) as residency:
        residency.prefetch("big3")
        settle(residency)
        with pytest.raises(AdapterTooLarge, match="--adapter-memory-gb"):
            residency.acquire("big3")
        assert residency.device.bytes == 0


@pytest.mark.parametrize(
    ("raised", "expected"), [(InvalidAdapter("bad"), "^bad$"), (OSError("gone"), "could not be loaded: gone")]
)
def test_a_failed_load_is_told_once_and_then_tried_again(raised: Exception, expected: str) -> None:
    disk = Disk()
    disk.broken["a"] = raised
    with residency_of(2, disk) as residency:
        residency.prefetch("a")
        settle(residency)
        with pytest.raises(AdapterError, match=expected):
            residency.acquire("a")
        disk.broken.clear()
        assert lease(residency, "a").digest == "a"


def test_a_new_request_does_not_get_an_old_failure() -> None:
    disk = Disk()
    disk.broken["a"] = InvalidAdapter("bad")
    with residency_of(2, disk) as residency:
        residency.prefetch("a")
        settle(residency)
        disk.broken.clear()
        residency.prefetch("a")
        assert lease(residency, "a").digest == "a"


def test_every_load_is_announced_however_it_ends() -> None:
    disk = Disk()
    disk.broken["b"] = InvalidAdapter("bad")
    calls: list[int] = []
    with residency_of(2, disk) as residency:
        residency.on_ready = lambda: calls.append(1)
        for digest in "ab":
            residency.prefetch(digest)
        until(lambda: len(calls) == 2)


def test_evict_drops_all_but_the_leased() -> None:
    with residency_of(2) as residency:
        lease(residency, "a")
        assert not residency.evict("a")
        assert residency.state("a") == "device"
        residency.release("a")
        assert residency.evict("a")
        assert residency.state("a") == "disk"
        assert residency.device.bytes == 0
        assert residency.evict("never seen")


def test_two_tiers_keep_more_on_the_host_than_on_the_device() -> None:
    disk = Disk()
    with residency_of(1, disk, torch.device("meta"), host=2) as residency:
        for digest in "ab":
            assert next(lease(residency, digest).tensors()).device.type == "meta"
            residency.release(digest)
        assert [residency.state(digest) for digest in "ab"] == ["host", "device"]
        lease(residency, "a")
        assert disk.reads == [*"ab"]  # it came from the host
        residency.release("a")
        assert residency.evict("a")
        assert residency.state("a") == "disk"


def test_what_is_on_the_device_is_not_read_again() -> None:
    disk = Disk()
    with residency_of(3, disk, torch.device("meta"), host=1) as residency:
        for digest in "abc":
            lease(residency, digest)
        assert [residency.state(digest) for digest in "abc"] == ["device"] * 3
        for digest in "abc":
            residency.prefetch(digest)
        settle(residency)
        assert disk.reads == [*"abc"]


def test_any_interleaving_from_many_threads_keeps_the_books() -> None:
    disk = Disk()
    with residency_of(2, disk) as residency:
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
        settle(residency)
        assert residency.device.leases == {}
        assert residency.device.bytes == sum(a.nbytes for a in residency.device.items.values())
        assert residency.device.bytes <= residency.device.budget


def test_one_forgotten_while_it_is_read_does_not_wait_either() -> None:
    disk = Disk()
    with residency_of(1, disk) as residency:
        lease(residency, "a")
        disk.open.clear()
        residency.prefetch("b")
        residency.forget("b")
        disk.open.set()
        settle(residency)
        assert not residency.lacks_room("b")
        disk.open.clear()
        residency.prefetch("c")
        residency.forget("c")
        residency.prefetch("c")  # wanted again after all
        disk.open.set()
        settle(residency)
        assert residency.lacks_room("c")


def test_warming_loads_but_neither_waits_for_room_nor_leaves_an_error() -> None:
    disk = Disk()
    disk.broken["bad"] = InvalidAdapter("bad")
    with residency_of(1, disk) as residency:
        for digest in ("bad", "a"):
            residency.warm(digest)
            settle(residency)
        assert residency.state("a") == "device"
        disk.broken.clear()
        assert lease(residency, "bad").digest == "bad"
        residency.warm("b")
        settle(residency)
        assert not residency.lacks_room("b")
        assert residency.state("bad") == "device"


def test_warming_what_a_request_waits_for_takes_nothing_from_it() -> None:
    disk = Disk()
    with residency_of(1, disk) as residency:
        lease(residency, "a")
        disk.open.clear()
        residency.prefetch("b")
        residency.warm("b")  # while it is read
        disk.open.set()
        settle(residency)
        residency.warm("b")  # while it waits for room
        assert residency.lacks_room("b")


def test_nothing_is_read_once_it_is_closed() -> None:
    disk = Disk()
    with residency_of(2, disk) as residency:
        residency.close()
        residency.prefetch("a")
        residency.warm("b")
        residency.pin("c")
        residency.tend()
    assert disk.reads == []
