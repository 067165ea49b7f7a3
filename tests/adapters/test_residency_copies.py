"""Copies to a device of its own: leased when they are done, never lost, told when they fail."""

from __future__ import annotations

import threading

import pytest

from adapters.errors import AdapterError
from tests.adapters.tiers import META, until, uploads


def test_an_adapter_is_leased_only_when_its_copy_is_done() -> None:
    with uploads(1, "a") as (residency, uploader):
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
    with uploads(1, "a", "b") as (residency, uploader):
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
    with uploads(1, "a", "b") as (residency, uploader):
        assert residency.acquire("a") is None
        residency.forget("a")
        assert residency.acquire("b") is None
        assert [*residency.device.items] == ["b"]
        uploader.events["a"].reached.set()  # the copy that was given up
        assert residency.acquire("a") is None
        uploader.events["b"].reached.set()
        assert residency.acquire("b") is not None


def test_one_that_was_evicted_on_its_way_is_copied_anew() -> None:
    with uploads(1, "a") as (residency, uploader):
        assert residency.acquire("a") is None
        first = uploader.events["a"]
        assert residency.evict("a")
        assert residency.device.bytes == 0
        first.reached.set()
        until(lambda: residency.acquire("a") is None and uploader.events["a"] is not first)
        uploader.events["a"].reached.set()
        assert residency.acquire("a") is not None


def test_a_copy_that_fails_is_told_and_tried_again() -> None:
    with uploads(1, "a") as (residency, uploader):
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
