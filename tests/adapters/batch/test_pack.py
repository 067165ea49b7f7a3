"""The concatenation of adapters holds each adapter's own columns and no others."""

from __future__ import annotations

import torch

from adapters.batch.pack import Pack, PackCache
from adapters.batch.placed import PlacedAdapter, place
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, ModuleDelta

GROUPS = [("q", "k"), ("o",), ("up",)]
SIZES = {"q": (6, 8), "k": (6, 4), "o": (8, 6), "up": (6, 10)}


def _adapter(digest: str, ranks: dict[str, int]) -> PlacedAdapter:
    generator = torch.Generator().manual_seed(sum(digest.encode()))
    deltas = {
        name: ModuleDelta(
            torch.randn(rank, SIZES[name][0], generator=generator),
            torch.randn(SIZES[name][1], rank, generator=generator),
            0.5,
        )
        for name, rank in ranks.items()
    }
    return place(AdapterWeights(digest, deltas), GROUPS, torch.float32)


A = _adapter("a", {"q": 2, "k": 3, "o": 1})
B = _adapter("b", {"k": 4})
C = _adapter("c", {"q": 1, "o": 5})


def _product(adapter: PlacedAdapter, group: int, member: int) -> torch.Tensor | None:
    own = adapter.groups.get(group)
    part = own.parts[member] if own else None
    return (own.at[:, part.start : part.stop] @ part.bt) if own and part else None


def test_own_columns_give_the_adapters_product_and_nothing_else() -> None:
    pack = Pack([A, B, C])
    for index, names in enumerate(GROUPS):
        for member in range(len(names)):
            for adapter in (A, B, C):
                expected = _product(adapter, index, member)
                packed = pack.groups.get(index)
                part = packed.parts[member] if packed else None
                if packed is None or part is None:
                    assert expected is None
                    continue
                owners = pack.layouts[packed.layout][part.start : part.stop]
                own = owners == pack.slots[adapter.digest]
                assert bool(own.any()) == (expected is not None)
                if expected is not None:
                    got = packed.at[:, part.start : part.stop][:, own] @ part.bt[own]
                    assert torch.allclose(got, expected)


def test_a_group_or_module_that_no_adapter_touches_is_absent() -> None:
    pack = Pack([A, B, C])
    assert set(pack.groups) == {0, 1}
    assert Pack([B]).groups[0].parts[0] is None
    assert Pack([B, _adapter("d", {"k": 1})]).groups[0].parts[0] is None


def test_nothing_is_padded() -> None:
    pack = Pack([A, B, C])
    assert pack.groups[0].at.shape[1] == 2 + 1 + 3 + 4
    assert pack.groups[1].at.shape[1] == 1 + 5


def test_one_adapter_is_not_copied() -> None:
    pack = Pack([A])
    assert pack.groups[0].at is A.groups[0].at
    assert Pack([A, B]).parameters == A.parameters + B.parameters


def test_equal_layouts_are_shared() -> None:
    twins = [_adapter(digest, {"q": 2, "o": 2}) for digest in "xy"]
    pack = Pack(twins)
    assert len(pack.layouts) == 1
    assert pack.groups[0].layout == pack.groups[1].layout


def test_no_adapters_that_touch_anything_make_an_empty_pack() -> None:
    pack = Pack([place(AdapterWeights("none", {}), GROUPS, torch.float32)])
    assert (pack.groups, pack.parameters) == ({}, 0)


def test_the_concatenation_is_kept_while_it_serves() -> None:
    cache = PackCache()

    def pack_after(*owners: PlacedAdapter) -> object:
        return cache.get([Segment(i, i + 1, owner) for i, owner in enumerate(owners)])

    whole = pack_after(A, B, C)
    assert pack_after(C, A) is whole  # a part of it, at little waste
    assert pack_after(A, B, C) is whole
    assert pack_after(B) is not whole  # most of it would be waste
    assert pack_after(A, B) is not pack_after(B, C)
    assert cache.get([Segment(0, 4, None)]) is None


def test_terms_have_a_row_for_each_slot_and_one_for_the_base() -> None:
    empty = torch.empty(0, 6), torch.empty(4, 0)
    magnitude, shift = torch.rand(4), torch.rand(4)
    scales = place(
        AdapterWeights("s", {"k": ModuleDelta(*empty, 1.0, magnitude=magnitude)}), GROUPS, torch.float32
    )
    shifts = place(AdapterWeights("t", {"k": ModuleDelta(*empty, 1.0, shift=shift)}), GROUPS, torch.float32)
    pack = Pack([scales, B, shifts])
    k = pack.groups[0].parts[1]
    assert k is not None
    assert k.magnitude is not None
    assert k.shift is not None
    ones, zeros = torch.ones(4), torch.zeros(4)
    assert torch.equal(k.magnitude, torch.stack([magnitude, ones, ones, ones]))
    assert torch.equal(k.shift, torch.stack([zeros, zeros, shift, zeros]))
    assert k.shift[0].signbit().all()  # -0.0 + -0.0 is -0.0
    alone = Pack([A, shifts]).groups[0].parts
    assert alone[0] is not None
    assert alone[0].magnitude is alone[0].shift is None
