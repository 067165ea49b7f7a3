"""A byte budget: the least recently used goes, leases hold, pins hold as long as there is another way."""

from __future__ import annotations

import torch

from adapters.batch.placed import Placed, place
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.pins import Pins
from adapters.tier import Tier

SIZE = 4 * (4 + 4)  # bytes of an adapter of rank 1 on a 4 by 4 layer


def _adapter(digest: str) -> Placed:
    """Of rank 1, or as many as the digit at the end of the digest says."""
    rank = int(digest[-1]) if digest[-1].isdigit() else 1
    delta = ModuleDelta(torch.ones(rank, 4), torch.ones(4, rank), 1.0)
    return place(AdapterWeights(digest, {"m": delta}), [("m",)], torch.float32)


def _tier(places: int, *digests: str, pinned: str = "") -> Tier:
    pins = Pins()
    pins.set(pinned)
    tier = Tier(places * SIZE, pins)
    for digest in digests:
        assert tier.put(_adapter(digest))
    return tier


def test_a_tier_evicts_the_least_recently_used() -> None:
    tier = Tier(2 * SIZE)
    for digest in "ab":
        assert tier.put(_adapter(digest))
    assert tier.get("a")
    assert tier.put(_adapter("c"))
    assert [*tier.items] == ["a", "c"]
    assert (tier.bytes, tier.evictions) == (2 * SIZE, 1)


def test_a_tier_never_evicts_what_is_leased_and_then_evicts_nothing() -> None:
    tier = Tier(2 * SIZE)
    for digest in "ab":
        tier.put(_adapter(digest))
    tier.lease("a")
    tier.lease("a")
    assert not tier.put(_adapter("x2"))
    assert [*tier.items] == ["a", "b"]
    assert tier.put(_adapter("c"))
    assert [*tier.items] == ["a", "c"]
    tier.release("a")
    assert tier.leases == {"a": 1}
    tier.release("a")
    assert tier.leases == {}
    assert tier.put(_adapter("x2"))
    assert [*tier.items] == ["x2"]


def test_pins_stay_and_the_least_recently_used_of_the_others_goes() -> None:
    tier = _tier(3, *"abc", pinned="ab")
    assert tier.put(_adapter("d"))
    assert [*tier.items] == ["a", "b", "d"]
    tier.lease("d")
    assert not tier.make_room(SIZE)
    assert tier.unpinned == SIZE


def test_what_is_asked_takes_the_room_of_pins_only_if_it_fits_nowhere_else() -> None:
    tier = _tier(3, *"abc", pinned="ab")
    tier.lease("c")
    assert not tier.make_room(SIZE, asked=True)  # it fits when `c` is let go
    assert [*tier.items] == ["a", "b", "c"]
    assert tier.make_room(2 * SIZE, asked=True)
    assert [*tier.items] == ["c"]
    tier = _tier(3, *"abc", pinned="ab")
    tier.get("a")
    assert tier.make_room(2 * SIZE, asked=True)
    assert [*tier.items] == ["a"]  # of the pins too the least recently used goes first


def test_leased_pins_stay() -> None:
    tier = _tier(2, *"ab", pinned="ab")
    tier.lease("a")
    assert not tier.make_room(2 * SIZE, asked=True)
    assert tier.make_room(SIZE, asked=True)
    assert [*tier.items] == ["a"]
