"""What only the native batch promises: a row's delta is the same bit for bit whatever stands beside it."""

from __future__ import annotations

import pytest
import torch

from adapters.batch.batched import BatchedLinear
from adapters.batch.linear import PlainLinear, make_linear
from adapters.batch.native.batch import NativeBatch
from adapters.batch.native.gemm import library
from adapters.batch.native.placed import NativeAdapter
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, ModuleDelta

INPUTS, OUTPUTS = 40, 50
RANKS = [1, 8, 16, 33]


def _random(*sizes: int, seed: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def _weights(rank: int) -> AdapterWeights:
    delta = ModuleDelta(_random(rank, INPUTS, seed=rank), _random(OUTPUTS, rank, seed=rank + 1), 0.25)
    return AdapterWeights(f"r{rank}", {"q": delta})


WEIGHTS = {f"r{rank}": _weights(rank) for rank in RANKS}
W = _random(OUTPUTS, INPUTS, seed=99)


class Stand:
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        native = library()
        assert native is not None, "these tests need a C++ compiler"
        self.batch = NativeBatch([("q",)], native)
        self.adapters = {name: self.batch.place(weights) for name, weights in WEIGHTS.items()}
        linear = make_linear(W, None) if dtype == torch.float32 else PlainLinear(W.to(dtype), None)
        self.layer = BatchedLinear("q", linear, None, self.batch, 0, 0, False)

    def run(self, x: torch.Tensor, lengths: list[tuple[str | None, int]]) -> torch.Tensor:
        segments: list[Segment[NativeAdapter]] = []
        start = 0
        for name, length in lengths:
            segments.append(Segment(start, start + length, self.adapters[name] if name else None))
            start += length
        self.batch.begin(segments, [])
        y: torch.Tensor = self.layer(x)
        self.batch.end()
        return y


def _expected(x: torch.Tensor, name: str | None) -> torch.Tensor:
    y = x.double() @ W.double().t()
    if name is None:
        return y
    delta = WEIGHTS[name].deltas["q"]
    return y + delta.scale * (x.double() @ delta.a.double().t()) @ delta.b.double().t()


def test_a_row_is_the_same_alone_and_among_others() -> None:
    stand = Stand()
    lengths: list[tuple[str | None, int]] = [("r8", 1), ("r16", 1), (None, 2), ("r33", 9), ("r1", 20)]
    x = _random(33, INPUTS, seed=0)
    together = stand.run(x, lengths)
    start = 0
    for name, length in lengths:
        for row in range(start, start + length):
            alone = stand.run(x[row : row + 1], [(name, 1)])
            assert torch.equal(alone[0], together[row])
            assert torch.allclose(alone[0].double(), _expected(x[row], name), atol=1e-4)
        start += length


@pytest.mark.parametrize("rows", [60, 130])
def test_a_long_segment_is_split_into_pieces_without_a_seam(rows: int) -> None:
    stand, x = Stand(), _random(rows, INPUTS, seed=1)
    got = stand.run(x, [("r33", rows - 3), (None, 1), ("r8", 2)])
    assert torch.allclose(got[: rows - 3].double(), _expected(x[: rows - 3], "r33"), atol=1e-4)
    assert torch.allclose(got[rows - 3].double(), _expected(x[rows - 3], None), atol=1e-4)
    assert torch.allclose(got[rows - 2 :].double(), _expected(x[rows - 2 :], "r8"), atol=1e-4)


def test_bfloat16_rows_get_a_delta_summed_in_float32() -> None:
    stand, x = Stand(torch.bfloat16), _random(5, INPUTS, seed=2).bfloat16()
    got = stand.run(x, [("r16", 2), (None, 1), ("r1", 2)])
    base = torch.nn.functional.linear(x, W.bfloat16())
    assert torch.equal(got[2], base[2])
    for row, name in ((0, "r16"), (1, "r16"), (3, "r1"), (4, "r1")):
        delta = WEIGHTS[name].deltas["q"]
        exact = base[row].double() + delta.scale * delta.b.double() @ (delta.a.double() @ x[row].double())
        assert torch.allclose(got[row].double(), exact, rtol=2**-8, atol=1e-2)
