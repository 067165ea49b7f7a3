"""Panels keep the adapter's numbers exactly, and the tables say where they are."""

from __future__ import annotations

import struct
from dataclasses import replace

import torch

from adapters.batch.native.gemm import library
from adapters.batch.native.placed import place
from adapters.delta import AdapterWeights, ModuleDelta

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
    assert PLACED.expand.shape == (4, 7)
    assert PLACED.groups.tolist() == [True, False]
    assert not PLACED.expand[:, 5:].any()  # no terms
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


def test_terms_are_copies_with_or_without_a_rank() -> None:
    magnitude, shift, scale = torch.rand(20), torch.rand(6), torch.rand(6)
    deltas = {
        "q": replace(DELTAS["q"], magnitude=magnitude),
        "k": ModuleDelta(torch.empty(0, 6), torch.empty(6, 0), 1.0, shift=shift, input_scale=scale),
        "o": ModuleDelta(torch.empty(0, 6), torch.empty(4, 0), 1.0, input_scale=scale),
    }
    assert LIBRARY is not None
    placed = place(LIBRARY, AdapterWeights("d", deltas), GROUPS)
    terms = {term.data_ptr(): term for term in placed.terms}
    assert torch.equal(terms[int(placed.expand[0, 5])], magnitude)
    assert torch.equal(terms[int(placed.expand[1, 6])], shift)
    assert not {magnitude.data_ptr(), shift.data_ptr()} & set(terms)
    assert (placed.expand[0, 6], placed.expand[1, 5]) == (0, 0)
    assert not placed.expand[2:].any()
    assert placed.groups.tolist() == [True, False]  # what scales an input is not told by tables
    assert {module: torch.equal(own, scale) for module, own in placed.input_scales.items()} == {
        (0, 1): True,
        (1, 0): True,
    }
    # q's B: 2 panels of 2 x 16 float32, its A: 1 of 6 x 16; then the terms.
    assert placed.nbytes == 4 * (2 * 2 * 16 + 6 * 16 + 20 + 6 + 6 + 6)
