"""Placing keeps the numbers: scaled, cast once, and grouped by shared input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters.batch.placed import PlacedAdapter, place
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.errors import AdapterError

GROUPS = [("q", "k", "v"), ("o",), ("up",)]


def _delta(rank: int, inputs: int, outputs: int, scale: float, seed: int) -> ModuleDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inputs, generator=generator)
    return ModuleDelta(a, torch.randn(outputs, rank, generator=generator), scale)


DELTAS = {"q": _delta(2, 6, 8, 0.5, 0), "v": _delta(3, 6, 4, 2.0, 1), "up": _delta(1, 6, 10, 1.0, 2)}
WEIGHTS = AdapterWeights("d", DELTAS)


def test_each_part_is_its_modules_delta() -> None:
    placed = place(WEIGHTS, GROUPS, torch.float32)
    assert placed.digest == "d"
    assert set(placed.groups) == {0, 2}
    for index, group in placed.groups.items():
        for name, part in zip(GROUPS[index], group.parts, strict=True):
            if name not in DELTAS:
                assert part is None
                continue
            assert part is not None
            delta = DELTAS[name]
            got = (group.at[:, part.start : part.stop] @ part.bt).t()
            assert torch.allclose(got, delta.scale * delta.b @ delta.a, atol=1e-6)


def test_parts_tile_the_stacked_matrix() -> None:
    group = place(WEIGHTS, GROUPS, torch.float32).groups[0]
    edges = [(part.start, part.stop) for part in group.parts if part]
    assert edges == [(0, 2), (2, 5)]
    assert group.at.shape == (6, 5)


def test_the_scale_is_applied_before_the_one_rounding() -> None:
    delta = DELTAS["q"]
    part = place(WEIGHTS, GROUPS, torch.bfloat16).groups[0].parts[0]
    assert part is not None
    assert torch.equal(part.bt, (delta.b * delta.scale).t().bfloat16())


def _matrices(placed: PlacedAdapter) -> list[torch.Tensor]:
    return [t for group in placed.groups.values() for t in (group.at, *(p.bt for p in group.parts if p))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_its_bytes_and_numbers(dtype: torch.dtype) -> None:
    placed = place(WEIGHTS, GROUPS, dtype)
    assert placed.parameters == 2 * (6 + 8) + 3 * (6 + 4) + 1 * (6 + 10)
    assert placed.parameters == sum(matrix.numel() for matrix in _matrices(placed))
    assert placed.nbytes == sum(-(-matrix.nbytes // 16) * 16 for matrix in _matrices(placed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_lie_side_by_side_where_kernels_can_read_them(dtype: torch.dtype) -> None:
    placed = place(WEIGHTS, GROUPS, dtype)
    [memory] = placed.tensors()
    taken: set[int] = set()
    for matrix in _matrices(placed):
        start = matrix.data_ptr() - memory.data_ptr()
        own = set(range(start, start + matrix.nbytes))
        assert start % 16 == 0
        assert own <= set(range(memory.nbytes))
        assert not own & taken
        assert matrix.is_contiguous() or matrix.t().is_contiguous()
        taken |= own


def test_keeps_no_tie_to_the_weights_it_was_made_from() -> None:
    weights = AdapterWeights("d", {"o": _delta(2, 8, 6, 1.0, 4)})
    placed = place(weights, GROUPS, torch.float32)
    part = placed.groups[1].parts[0]
    assert part is not None
    a, bt = placed.groups[1].at.clone(), part.bt.clone()
    weights.deltas["o"].a.zero_()
    weights.deltas["o"].b.zero_()
    assert torch.equal(placed.groups[1].at, a)
    assert torch.equal(part.bt, bt)


def test_moves_to_a_device_whole() -> None:
    moved = place(WEIGHTS, GROUPS, torch.float32).to(torch.device("meta"))
    assert {group.at.device.type for group in moved.groups.values()} == {"meta"}
    assert {part.bt.device.type for g in moved.groups.values() for part in g.parts if part} == {"meta"}
    for matrix, still in zip(_matrices(moved), _matrices(place(WEIGHTS, GROUPS, torch.float32)), strict=True):
        assert (matrix.shape, matrix.stride()) == (still.shape, still.stride())
        assert matrix.storage_offset() == still.storage_offset()
    assert (moved.digest, moved.nbytes) == ("d", place(WEIGHTS, GROUPS, torch.float32).nbytes)


@pytest.mark.parametrize(("a", "b", "scale"), [(1e30, 1.0, 1.0), (1.0, 1e30, 1.0), (1.0, 1e4, 100.0)])
def test_values_that_the_type_of_the_base_cannot_hold_are_refused(a: float, b: float, scale: float) -> None:
    """An infinity would reach neighbours as `0 * inf`, which is NaN."""
    delta = ModuleDelta(torch.full((2, 6), a), torch.full((8, 2), b), scale)
    with pytest.raises(AdapterError, match=r"o\b.*float16"):
        place(AdapterWeights("d" * 64, {"o": delta}), GROUPS, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_stay_float32_and_move_along(dtype: torch.dtype) -> None:
    terms = {name: torch.rand(size) for name, size in (("magnitude", 8), ("shift", 8), ("input_scale", 6))}
    own = {
        "q": replace(DELTAS["q"], **terms),  # type: ignore[arg-type]  # no float among them
        "k": ModuleDelta(torch.empty(0, 6), torch.empty(5, 0), 1.0, shift=torch.rand(5)),
        "o": ModuleDelta(torch.empty(0, 8), torch.empty(6, 0), 1.0, input_scale=torch.rand(8)),
    }
    placed = place(AdapterWeights("d", own), GROUPS, dtype)
    [memory] = placed.tensors()
    moved = placed.to(torch.device("cpu"))
    for adapter in (placed, moved):
        q, k, v = adapter.groups[0].parts
        assert q is not None
        assert k is not None
        assert v is None
        assert (k.start, k.stop, k.bt.shape) == (2, 2, (0, 5))
        found = [q.magnitude, q.shift, adapter.input_scales[0, 0], k.shift, adapter.input_scales[1, 0]]
        for term, given in zip(found, [*terms.values(), own["k"].shift, own["o"].input_scale], strict=True):
            assert term is not None
            assert given is not None
            assert torch.equal(term, given)
            assert term.data_ptr() % 16 == 0
            assert memory.data_ptr() <= term.data_ptr() < memory.data_ptr() + memory.nbytes
    assert placed.nbytes == memory.nbytes


def test_a_term_too_large_for_the_type_is_refused() -> None:
    own = replace(DELTAS["q"], shift=torch.full((8,), 1e5))
    place(AdapterWeights("d", {"q": own}), GROUPS, torch.bfloat16)
    with pytest.raises(AdapterError, match="q has values too large"):
        place(AdapterWeights("d", {"q": own}), GROUPS, torch.float16)
