"""Panels keep the adapter's numbers exactly, and the tables say where they are."""

from __future__ import annotations

import struct

import torch

from adapters.delta import AdapterWeights, ModuleDelta
from adapters.native.gemm import library
from adapters.native.placed import place

GROUPS = [("q", "k", "v"), ("o",)]


def _delta(rank: int, inputs: int, outputs: int, scale: float, dtype: torch.dtype) -> ModuleDelta:
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(rank, inputs, generator=generator).to(dtype)
    return ModuleDelta(a, torch.randn(outputs, rank, generator=generator).to(dtype), scale)


DELTAS = {"q": _delta(2, 6, 20, 0.3, torch.float32), "v": _delta(3, 6, 4, 2.0, torch.bfloat16)}
LIBRARY = library()
assert LIBRARY is not None, "these tests need a C++ compiler"
PLACED = place(LIBRARY, AdapterWeights("d", DELTAS), GROUPS)


def test_tables_have_a_row_for_every_group_and_module() -> None:
    assert PLACED.shrink.shape == (2, 3)
    assert PLACED.expand.shape == (4, 5)
    assert not PLACED.shrink[1].any()  # nothing on `o`
    assert not PLACED.expand[[1, 3]].any()
    assert PLACED.shrink[0, 1] == PLACED.columns == 5
    assert PLACED.expand[[0, 2], 1].tolist() == [0, 2]  # first columns
    assert PLACED.expand[[0, 2], 2].tolist() == [2, 3]  # ranks
    assert PLACED.expand[[0, 2], 3].tolist() == [0, 1]  # whether bfloat16
    scales = [struct.unpack("<d", struct.pack("<q", int(bits)))[0] for bits in PLACED.expand[[0, 2], 4]]
    assert scales == [0.3, 2.0]


def test_addresses_lead_to_the_exact_numbers() -> None:
    panels = {kept.data.data_ptr(): kept for kept in PLACED.panels}
    a = torch.cat([DELTAS["q"].a, DELTAS["v"].a.float()])
    assert torch.equal(panels[int(PLACED.shrink[0, 0])].unpack(), a)
    for module, name in ((0, "q"), (2, "v")):
        assert torch.equal(panels[int(PLACED.expand[module, 0])].unpack(), DELTAS[name].b.float())


def test_counts_its_bytes() -> None:
    # q's B: 2 panels of 2 x 16 float32; v's: 1 of 3 x 16 bfloat16, in pairs; A of both: 1 of 6 x 16 float32.
    assert PLACED.nbytes == 4 * 2 * 2 * 16 + 2 * 4 * 16 + 4 * 6 * 16
