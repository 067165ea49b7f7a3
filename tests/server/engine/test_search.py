"""Each search against torch's own operation over the whole row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from server.engine import search

WIDTHS = [1, 5, 63, 64, 65, 1000, 5000]
SPREADS = [0.1, 3.0, 20.0]


def _rows(width: int, spread: float, count: int = 4, seed: int = 0) -> Tensor:
    return spread * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", WIDTHS)
def test_argmax(width: int, dtype: torch.dtype) -> None:
    for shift in (0.0, -50.0, 50.0):
        rows = (_rows(width, 3.0) + shift).to(dtype)
        found = search.argmax(rows)
        assert rows.gather(1, torch.tensor(found)[:, None])[:, 0].tolist() == rows.amax(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_of_rows_that_are_zero_negative_or_infinite(dtype: torch.dtype) -> None:
    inf = math.inf
    rows = torch.tensor([[-0.0, -1, -0.5], [-3, -2, -inf], [1, inf, 2], [-inf, -inf, -5]], dtype=dtype)
    assert search.argmax(rows) == [0, 1, 1, 2]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 5, 20, 9999])
def test_topk(width: int, count: int) -> None:
    rows = _rows(width, 3.0)
    values, places = search.topk(rows, count)
    expected = rows.topk(min(count, width), dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", SPREADS)
def test_inverse(width: int, spread: float) -> None:
    weights = _rows(width, spread, 1)[0].softmax(-1)
    cumulative = weights.double().cumsum(0)
    for uniform in [0.0, *torch.rand(50, dtype=torch.float64).tolist(), 1 - 2.0**-53]:
        place = search.inverse(weights, uniform)
        before = float(cumulative[place - 1]) if place else 0.0
        share = uniform * float(cumulative[-1])
        assert before - 1e-6 <= share <= float(cumulative[place]) + 1e-6


def test_inverse_takes_no_weight_of_nought() -> None:
    weights = torch.zeros(300)
    weights[[70, 200]] = 1.0
    assert {search.inverse(weights, u / 100) for u in range(100)} == {70, 200}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(
    "asked", [(1, 1.0, 0.0), (30, 1.0, 0.0), (0, 0.5, 0.0), (0, 0.999, 0.0), (0, 1.0, 0.01)]
)
def test_nucleus(width: int, spread: float, asked: tuple[int, float, float]) -> None:
    """A beginning of the whole row in order, and as much of it as was asked for."""
    count, share, ratio = asked
    weights = _rows(width, spread, 1)[0].softmax(-1)
    values, places = search.nucleus(weights, min(count, width), share, ratio)
    assert torch.equal(values, weights.sort(descending=True).values[: len(values)])
    assert torch.equal(values, weights[places])
    assert len(set(places.tolist())) == len(places)
    assert len(values) >= min(count, width)
    assert share == 1 or float(values.sum()) >= share - 1e-6
    assert len(values) >= int((weights >= ratio * weights.amax()).sum()) or not ratio
