"""A slot holds the addresses of its adapter and of no other, for as long as that lives."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from adapters.batch.cuda.table import AdapterTable
from adapters.batch.placed import PlacedAdapter, place
from adapters.delta import AdapterWeights, ModuleDelta
from tests.adapters.batch.cuda.stand import GROUPS, MAX_RANK, RANKS, SHAPES, weights

CPU = torch.device("cpu")


@pytest.fixture
def table() -> AdapterTable:
    return AdapterTable(SHAPES, 2, MAX_RANK, torch.float32, CPU)


def _placed(number: int, dtype: torch.dtype = torch.float32) -> PlacedAdapter:
    return place(weights(f"adapter {number}", RANKS[number]), GROUPS, dtype)


def test_a_slot_holds_addresses_and_ranks(table: AdapterTable) -> None:
    adapter = _placed(1)
    slot = table.assign(adapter)
    group = adapter.groups[0]
    q, k, v = group.parts
    assert q is not None
    assert k is None
    assert v is not None
    entries = table.groups[0].entries[slot]
    assert entries[0, :2].tolist() == [group.at.data_ptr(), 13]
    assert entries[1, :5].tolist() == [q.bt.data_ptr(), 0, 5, 0, 0]
    assert not entries[2].any()
    assert entries[3, :5].tolist() == [v.bt.data_ptr(), 5, 8, 0, 0]
    assert not table.groups[1].entries[slot].any()


def test_terms_are_told_beside_the_delta_or_alone(table: AdapterTable) -> None:
    q = replace(weights("q", {"q": 5}).deltas["q"], magnitude=torch.ones(272))
    down = ModuleDelta(torch.empty(0, 1100), torch.empty(48, 0), 1.0, shift=torch.ones(48))
    adapter = place(AdapterWeights("terms", {"q": q, "down": down}), GROUPS, torch.float32)
    slot = table.assign(adapter)
    parts = adapter.groups[0].parts[0], adapter.groups[1].parts[0]
    assert parts[0] is not None
    assert parts[1] is not None
    magnitude, shift = parts[0].magnitude, parts[1].shift
    assert magnitude is not None
    assert shift is not None
    assert table.groups[0].entries[slot, 1, 3:5].tolist() == [magnitude.data_ptr(), 0]
    assert table.groups[1].entries[slot, 1].tolist() == [0, 0, 0, 0, shift.data_ptr(), 0, 0, 0]


def test_only_the_slots_own_entries_change_and_none_moves(table: AdapterTable) -> None:
    adapter, other = _placed(0), _placed(2)
    first = table.assign(adapter)
    before = [group.entries[first].clone() for group in table.groups]
    addresses = [group.entries.data_ptr() for group in table.groups]
    second = table.assign(other)
    table.free(other)
    assert [group.entries.data_ptr() for group in table.groups] == addresses
    for group, entries in zip(table.groups, before, strict=True):
        assert torch.equal(group.entries[first], entries)
        assert not group.entries[second].any()


def test_slots_are_found_filled_and_freed(table: AdapterTable) -> None:
    adapters = [_placed(number) for number in range(3)]
    assert [table.assign(adapter) for adapter in adapters[:2]] == [0, 1]
    assert [table.slot(adapter) for adapter in adapters] == [0, 1, None]
    assert table.assigned == adapters[:2]
    with pytest.raises(ValueError, match="has slot 1 already"):
        table.assign(adapters[1])
    with pytest.raises(ValueError, match="all 2 adapter slots are taken"):
        table.assign(adapters[2])
    assert table.full
    table.free(adapters[0])
    with pytest.raises(ValueError, match="has no slot"):
        table.free(adapters[0])
    assert table.slot(adapters[0]) is None
    assert table.assign(adapters[2]) == 0


def test_a_slot_is_free_when_its_adapter_is_gone(table: AdapterTable) -> None:
    stays, goes = _placed(0), _placed(1)
    assert [table.assign(goes), table.assign(stays)] == [0, 1]
    memory = weakref.ref(goes.groups[0].at)
    del goes
    gc.collect()
    assert memory() is None
    assert table.assigned == [stays]
    assert table.assign(_placed(2)) == 0


def test_what_the_kernels_would_misread_is_refused(table: AdapterTable) -> None:
    good = _placed(0)
    group = good.groups[0]
    wrong = {
        "narrow type": _placed(0, torch.float16),
        "layout": replace(good, groups={0: replace(group, at=group.at.t().contiguous().t())}),
        "input width": replace(good, groups={1: group}),
        "modules": replace(good, groups={0: replace(group, parts=group.parts[:2])}),
        "order of modules": replace(good, groups={0: replace(group, parts=group.parts[::-1])}),
        "ranks": replace(good, groups={0: replace(group, at=group.at[:, :40].contiguous())}),
        "place in memory": replace(good, groups={0: replace(group, at=_shifted(group.at))}),
    }
    for what, adapter in wrong.items():
        with pytest.raises(ValueError, match=r"suit|expected"):
            table.assign(adapter)
        assert table.slot(adapter) is None, what
    q = group.parts[0]
    assert q is not None
    for term in (torch.ones(271), torch.ones(272, dtype=torch.float64), torch.ones(544)[::2]):
        parts = replace(q, shift=term), *group.parts[1:]
        with pytest.raises(ValueError, match=r"shape|expected"):
            table.assign(replace(good, groups={0: replace(group, parts=parts)}))
    assert not any(group.entries.any() for group in table.groups)
    assert table.assigned == []


def test_ranks_over_the_bound_are_refused() -> None:
    table = AdapterTable(SHAPES, 2, 8, torch.float32, CPU)
    with pytest.raises(ValueError, match="at most 24 ranks"):
        table.assign(_placed(0))


def _shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, not at a multiple of 16 bytes."""
    memory = torch.empty(tensor.numel() + 1)
    shifted = memory[1:].view(tensor.shape)
    return shifted.copy_(tensor)
